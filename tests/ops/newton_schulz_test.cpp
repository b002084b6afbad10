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
}

}  // namespace
}  // namespace seqloom
