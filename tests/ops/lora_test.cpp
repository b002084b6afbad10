#include "ops/lora.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "support/compare.h"

namespace seqloom {
namespace {

TEST(Lora, StartsAsTheLinearLayerAndMerges) {
  torch::manual_seed(2);
  const torch::Tensor weight = torch::randn({6, 9}), bias = torch::randn({6}), x = torch::randn({2, 5, 9});
  auto [A, B] = ops::lora_start(weight, 4);
  expect_near(ops::lora(x, weight, bias, A, B, 8), torch::linear(x, weight, bias), 1e-6, "B = 0");
  EXPECT_GT(A.abs().max().item<double>(), 0);
  B.normal_();
  expect_near(ops::lora(x, weight, {}, A, B, 8), torch::linear(x, ops::lora_merged(weight, A, B, 8)), 1e-5, "merged");
}

TEST(Lora, WrongShapesAreRefused) {
  const torch::Tensor weight = torch::randn({6, 9}), A = torch::randn({4, 9}), B = torch::randn({6, 4});
  EXPECT_THROW(ops::lora(torch::randn({2, 8}), weight, {}, A, B, 1), UsageError);
  EXPECT_THROW(ops::lora(torch::randn({2, 9}), weight, {}, A, B.t(), 1), UsageError);
  EXPECT_THROW(ops::lora_start(weight, 0), UsageError);
}

}  // namespace
}  // namespace seqloom
