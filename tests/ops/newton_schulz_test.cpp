#include "ops/newton_schulz.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "support/compare.h"

namespace seqloom {
namespace {

using torch::Tensor;

TEST(NewtonSchulz, SingularValuesComeNearOneWhateverTheScale) {
  torch::manual_seed(1);
  const Tensor x = torch::randn({3, 6, 9}, torch::kFloat64), y = ops::newton_schulz(x);
  const Tensor values = torch::linalg_svdvals(y, {});
  EXPECT_GT(values.min().item<double>(), 0.3);
  EXPECT_LT(values.max().item<double>(), 1.3);
  expect_near(ops::newton_schulz(x * 1000), y, 1e-6, "scaled");
  expect_near(ops::newton_schulz(x.transpose(1, 2)), y.transpose(1, 2), 1e-10, "transposed");
}

TEST(NewtonSchulz, AZeroMatrixStaysZeroAndHasAFiniteGradient) {
  const Tensor x = torch::zeros({2, 3, 4}).requires_grad_(true);
  const Tensor y = ops::newton_schulz(x);
  EXPECT_EQ(y.abs().max().item<double>(), 0);
  EXPECT_TRUE(torch::autograd::grad({y.sum()}, {x})[0].isfinite().all().item<bool>());
}

TEST(NewtonSchulz, RefusesVectors) {
  EXPECT_THROW(ops::newton_schulz(torch::randn({4})), UsageError);
  EXPECT_THROW(ops::newton_schulz_factor(torch::randn({4, 3})), UsageError);
}

Tensor by_factor(const Tensor& x, int64_t steps = 5) {
  return torch::matmul(ops::newton_schulz_factor(torch::matmul(x, x.transpose(-1, -2)), steps), x);
}

TEST(NewtonSchulzFactor, TimesXIsTheIteration) {
  torch::manual_seed(2);
  const Tensor x = torch::randn({2, 3, 6, 9}, torch::kFloat64);
  for (const int64_t steps : {0, 1, 2, 5, 8}) {
    expect_near(by_factor(x, steps), ops::newton_schulz(x, steps), steps < 8 ? 1e-11 : 1e-6, "y");
  }
  const Tensor many = torch::randn({70, 64, 80}, torch::kFloat64);  // more than a block of matrices
  expect_near(by_factor(many), ops::newton_schulz(many), 1e-9, "many");
}

TEST(NewtonSchulzFactor, GradientsOfFirstAndSecondOrderAreThoseOfTheIteration) {
  torch::manual_seed(3);
  const auto wide = torch::TensorOptions().dtype(torch::kFloat64);
  const Tensor x = torch::randn({40, 5, 7}, wide).requires_grad_(true), target = torch::randn({40, 5, 7}, wide);
  const auto gradients = [&](const Tensor& y) {
    const Tensor loss = (y * target).sum() + y.square().sum();
    const Tensor plain = torch::autograd::grad({loss}, {x}, {}, /*retain_graph=*/true)[0];
    const Tensor first = torch::autograd::grad({loss}, {x}, {}, true, /*create_graph=*/true)[0];
    return std::array{plain, first, torch::autograd::grad({first.square().sum()}, {x})[0]};
  };
  const auto got = gradients(by_factor(x)), want = gradients(ops::newton_schulz(x));
  expect_near(got[0], want[0], 1e-8, "by the slope");
  expect_near(got[1], want[1], 1e-8, "by the plain form");
  expect_near(got[2] / want[2].abs().max(), want[2] / want[2].abs().max(), 1e-8, "second order");
}

TEST(NewtonSchulzFactor, AZeroMatrixHasAFiniteGradient) {
  const Tensor x = torch::zeros({2, 3, 4}).requires_grad_(true);
  const Tensor y = by_factor(x);
  EXPECT_EQ(y.abs().max().item<double>(), 0);
  EXPECT_TRUE(torch::autograd::grad({y.sum()}, {x})[0].isfinite().all().item<bool>());
}

TEST(NewtonSchulzFactor, OfLowRankHasTheGradientOfTheIteration) {
  torch::manual_seed(4);
  const auto wide = torch::TensorOptions().dtype(torch::kFloat64);
  const Tensor x = torch::matmul(torch::randn({9, 32, 3}, wide), torch::randn({9, 3, 40}, wide)).requires_grad_(true);
  const Tensor target = torch::randn({9, 32, 40}, wide);
  for (const int64_t steps : {3, 5, 7}) {
    const Tensor want = ops::newton_schulz(x, steps), got = by_factor(x, steps);
    expect_near(got, want, 1e-7, "y");
    const Tensor gradient = torch::autograd::grad({(want * target).sum()}, {x})[0];
    expect_near(torch::autograd::grad({(got * target).sum()}, {x})[0] / gradient.abs().max(),
                gradient / gradient.abs().max(), 1e-7, "gradient");
  }
}

TEST(NewtonSchulzFactor, RefusesStepsItCannotResolve) {
  EXPECT_THROW(ops::newton_schulz_factor(torch::eye(3), 13), UsageError);
}

}  // namespace
}  // namespace seqloom
