#pragma once
#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <functional>
#include <string>
#include <vector>

#include "ops/fused.h"
#include "support/compare.h"

namespace seqloom {

/// Runs `check` under every SIMD target that this machine has.
template <typename Check>
void on_every_target(Check check) {
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    hwy::SetSupportedTargetsForTest(target);
    SCOPED_TRACE(hwy::TargetName(target));
    check();
    hwy::SetSupportedTargetsForTest(0);
  }
}

inline std::vector<torch::Tensor> in_float64(std::vector<torch::Tensor> tensors) {
  for (torch::Tensor& t : tensors) {
    if (t.defined()) t = t.to(torch::kFloat64);
  }
  return tensors;
}

/// Results are finite and near, one by one.
inline void expect_all_near(const std::vector<torch::Tensor>& got, const std::vector<torch::Tensor>& want,
                            double tolerance, const std::string& what) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < want.size(); ++i) {
    ASSERT_TRUE(got[i].isfinite().all().item<bool>()) << what << ", result " << i;
    expect_near(got[i], want[i], tolerance, what + ", result " + std::to_string(i));
  }
}

/// An op of some tensors; undefined inputs are absent ones. Views of inputs are made inside.
using TestedOp = std::function<std::vector<torch::Tensor>(const std::vector<torch::Tensor>&)>;

namespace detail {

inline std::vector<torch::Tensor> leaves_of(const std::vector<torch::Tensor>& inputs) {
  std::vector<torch::Tensor> leaves;
  for (const auto& t : inputs) leaves.push_back(t.defined() ? t.detach().clone().requires_grad_(true) : t);
  return leaves;
}

inline std::vector<torch::Tensor> defined(const std::vector<torch::Tensor>& all) {
  std::vector<torch::Tensor> some;
  for (const auto& t : all) {
    if (t.defined()) some.push_back(t);
  }
  return some;
}

/// A sum of all outputs that can be differentiated, with fixed random weights.
inline torch::Tensor weighted_sum(const std::vector<torch::Tensor>& outputs) {
  torch::manual_seed(3);
  torch::Tensor sum = torch::zeros({});
  for (const auto& y : outputs) {
    if (y.requires_grad()) sum = sum + (y.to(torch::kFloat32) * torch::randn(y.sizes())).sum();
  }
  return sum;
}

}  // namespace detail

/// Outputs of the op, then the gradients of its inputs.
inline std::vector<torch::Tensor> outputs_and_gradients(const TestedOp& op, const std::vector<torch::Tensor>& inputs,
                                                        bool fused) {
  const auto leaves = detail::leaves_of(inputs);
  ops::set_fused_enabled(fused);
  const auto outputs = op(leaves);
  auto all = torch::autograd::grad({detail::weighted_sum(outputs)}, detail::defined(leaves));
  {
    const torch::NoGradGuard no_grad;  // the way without a graph
    for (const auto& y : op(leaves)) all.push_back(y);
  }
  ops::set_fused_enabled(true);
  for (const auto& y : outputs) all.push_back(y.detach());
  return all;
}

/// The fused op has the reference's outputs, types and gradients under every SIMD target.
inline void expect_fused_equals_reference(const TestedOp& op, const std::vector<torch::Tensor>& inputs,
                                          double tolerance) {
  const auto want = outputs_and_gradients(op, inputs, false);
  on_every_target([&] {
    const auto got = outputs_and_gradients(op, inputs, true);
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < want.size(); ++i) {
      EXPECT_EQ(got[i].scalar_type(), want[i].scalar_type()) << i;
      if (want[i].is_complex()) {
        expect_near(torch::view_as_real(got[i]), torch::view_as_real(want[i]), tolerance, std::to_string(i));
      } else {
        expect_near(got[i], want[i], tolerance, std::to_string(i));
      }
    }
  });
}

/// The gradient of the squared gradients, which a fused op takes through its reference.
inline void expect_same_second_derivatives(const TestedOp& op, const std::vector<torch::Tensor>& inputs,
                                           double tolerance) {
  const auto second = [&](bool fused) {
    const auto leaves = detail::leaves_of(inputs);
    ops::set_fused_enabled(fused);
    torch::Tensor sum = torch::zeros({});
    for (const auto& y : op(leaves)) {
      if (y.requires_grad()) sum = sum + y.pow(2).sum();
    }
    torch::Tensor norm = torch::zeros({});
    for (const auto& g : torch::autograd::grad({sum}, detail::defined(leaves), {}, true, true)) {
      norm = norm + g.pow(2).sum();
    }
    ops::set_fused_enabled(true);
    return torch::autograd::grad({norm}, detail::defined(leaves));
  };
  const auto want = second(false), got = second(true);
  for (size_t i = 0; i < want.size(); ++i) expect_near(got[i], want[i], tolerance, "second derivative");
}

}  // namespace seqloom
