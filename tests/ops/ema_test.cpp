#include <gtest/gtest.h>

#include "base/error.h"
#include "ops/ema.h"
#include "support/compare.h"

namespace seqloom::ops {
namespace {

using torch::Tensor;

struct Parameters {
  Tensor delta, alpha, beta, gamma, omega;
};

Parameters draw(int64_t channels, int64_t averages) {
  const auto leaf = [](std::vector<int64_t> shape) {
    return torch::randn(shape, torch::kFloat64).requires_grad_(true);
  };
  return {leaf({channels, averages, 1}), leaf({channels, averages, 1}), leaf({channels, averages, 1}),
          leaf({channels, averages}), leaf({channels})};
}

std::tuple<Tensor, Tensor> chunked(const Tensor& x, const Parameters& p, const std::optional<Tensor>& state,
                                   const std::optional<Tensor>& lengths = {}, int64_t chunk = 64) {
  return ema(x, p.delta, p.alpha, p.beta, p.gamma, p.omega, state, lengths, chunk);
}

/// The definition, token by token.
std::tuple<Tensor, Tensor> loop(const Tensor& x, const Parameters& p, Tensor h) {
  const Tensor rate = torch::sigmoid(p.delta).squeeze(-1), q = 1 - rate * torch::sigmoid(p.alpha).squeeze(-1);
  std::vector<Tensor> outputs;
  for (int64_t t = 0; t < x.size(1); ++t) {
    h = q * h + rate * p.beta.squeeze(-1) * x.select(1, t).unsqueeze(-1);
    const Tensor read = (p.gamma * h).sum(-1) / std::sqrt(static_cast<double>(p.gamma.size(1)));
    outputs.push_back(torch::silu(read + p.omega * x.select(1, t)));
  }
  return {torch::stack(outputs, 1), h};
}

TEST(Ema, EqualsTheLoopWithItsGradients) {
  torch::manual_seed(2);
  const Parameters p = draw(5, 3);
  for (const int64_t tokens : {1, 7, 8, 9, 40}) {
    const Tensor x = torch::randn({2, tokens, 5}, torch::kFloat64).requires_grad_(true);
    const Tensor state = torch::randn({2, 5, 3}, torch::kFloat64).requires_grad_(true);
    const Tensor of_y = torch::randn_like(x), of_h = torch::randn_like(state);
    const std::vector<Tensor> leaves = {x, state, p.delta, p.alpha, p.beta, p.gamma, p.omega};
    const auto gradients = [&](const std::tuple<Tensor, Tensor>& result) {
      return torch::autograd::grad({(std::get<0>(result) * of_y).sum() + (std::get<1>(result) * of_h).sum()}, leaves);
    };
    const auto got = chunked(x, p, state, {}, 8), want = loop(x, p, state);
    expect_near(std::get<0>(got), std::get<0>(want), 1e-12, "y");
    expect_near(std::get<1>(got), std::get<1>(want), 1e-12, "state");
    const auto a = gradients(got), b = gradients(want);
    for (size_t i = 0; i < leaves.size(); ++i) expect_near(a[i], b[i], 1e-11, "gradient " + std::to_string(i));
  }
}

TEST(Ema, ReturnsTheStateAfterEachRowsLastRealToken) {
  const torch::NoGradGuard no_grad;
  const Parameters p = draw(4, 2);
  const Tensor x = torch::randn({5, 19, 4}, torch::kFloat64), state = torch::randn({5, 4, 2}, torch::kFloat64);
  const std::vector<int64_t> lengths = {0, 1, 8, 13, 19};
  const Tensor h = std::get<1>(chunked(x, p, state, torch::tensor(lengths), 8));
  for (int64_t row = 0; row < 5; ++row) {
    Tensor want = state.narrow(0, row, 1);
    const int64_t length = lengths[static_cast<size_t>(row)];
    if (length > 0) want = std::get<1>(loop(x.narrow(0, row, 1).narrow(1, 0, length), p, want));
    expect_near(h.narrow(0, row, 1), want, 1e-12, "row " + std::to_string(row));
  }
}

TEST(Ema, GoesOnFromAState) {
  const torch::NoGradGuard no_grad;
  const Parameters p = draw(4, 3);
  const Tensor x = torch::randn({2, 150, 4}, torch::kFloat64);
  const auto [whole, last] = chunked(x, p, {});
  const auto [first, between] = chunked(x.narrow(1, 0, 67), p, {});
  const auto [second, end] = chunked(x.narrow(1, 67, 83), p, between);
  expect_near(torch::cat({first, second}, 1), whole, 1e-12, "y");
  expect_near(end, last, 1e-12, "state");
}

TEST(Ema, AnAverageThatForgetsEverythingHasFiniteGradients) {
  Parameters p = draw(2, 2);
  p.delta = torch::full({2, 2, 1}, 100.0).requires_grad_(true);  // float32: q = 1 - 1 = 0
  p.alpha = torch::full({2, 2, 1}, 100.0).requires_grad_(true);
  const Tensor x = torch::randn({1, 9, 2}).requires_grad_(true);
  const auto [y, h] = ema(x, p.delta, p.alpha, p.beta.to(torch::kFloat32), p.gamma.to(torch::kFloat32),
                          p.omega.to(torch::kFloat32), {}, {});
  for (const auto& gradient : torch::autograd::grad({y.sum() + h.sum()}, {x, p.delta, p.alpha})) {
    EXPECT_TRUE(gradient.isfinite().all().item<bool>());
  }
}

TEST(Ema, RefusesWrongShapes) {
  const Parameters p = draw(4, 2);
  EXPECT_THROW(chunked(torch::randn({2, 0, 4}), p, {}), UsageError);
  EXPECT_THROW(chunked(torch::randn({2, 3, 5}), p, {}), UsageError);
  EXPECT_THROW(chunked(torch::randn({2, 3, 4}), p, torch::zeros({2, 4, 3})), UsageError);
}

}  // namespace
}  // namespace seqloom::ops
