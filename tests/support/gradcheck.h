#pragma once
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "support/compare.h"

namespace seqloom {

/// Holds autograd's gradients of a random weighted sum of f's outputs against central differences, for every element of
/// every input. Inputs are real float64; f may view them as complex, and returns a real tensor of any shape. Costs two
/// calls of f an element: keep the inputs small.
inline void expect_gradients_match(const std::function<torch::Tensor(std::vector<torch::Tensor>)>& f,
                                   const std::vector<torch::Tensor>& inputs, double tolerance = 1e-6) {
  std::vector<torch::Tensor> leaves;
  for (const auto& input : inputs) leaves.push_back(input.detach().clone().requires_grad_(true));
  const torch::Tensor outputs = f(leaves), weights = torch::randn_like(outputs.detach());
  const auto gradients = torch::autograd::grad({(outputs * weights).sum()}, leaves, {}, false, false, true);

  const torch::NoGradGuard no_gradients;
  constexpr double kStep = 1e-5;
  std::vector<torch::Tensor> moved;
  for (const auto& input : inputs) moved.push_back(input.detach().clone().contiguous());
  const auto loss = [&] { return (f(moved) * weights).sum().item<double>(); };
  for (size_t i = 0; i < inputs.size(); ++i) {
    ASSERT_EQ(inputs[i].scalar_type(), torch::kFloat64) << "input " << i;
    torch::Tensor numeric = torch::zeros_like(moved[i]);
    for (int64_t k = 0; k < moved[i].numel(); ++k) {
      double& element = moved[i].mutable_data_ptr<double>()[k];
      const double kept = std::exchange(element, element + kStep);
      const double above = loss();
      element = kept - kStep;
      numeric.mutable_data_ptr<double>()[k] = (above - loss()) / (2 * kStep);
      element = kept;
    }
    const torch::Tensor analytic = gradients[i].defined() ? gradients[i] : torch::zeros_like(numeric);
    expect_near(analytic, numeric, tolerance, "gradient of input " + std::to_string(i));
  }
}

}  // namespace seqloom
