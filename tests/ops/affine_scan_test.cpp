#include "ops/affine_scan.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "support/compare.h"
#include "support/gradcheck.h"

namespace seqloom {
namespace {

using torch::Tensor;

/// Every h_t by the definition, one token after the other.
Tensor by_token(const Tensor& a, const Tensor& b, Tensor h) {
  std::vector<Tensor> states;
  for (int64_t t = 0; t < a.size(1); ++t) {
    h = a.select(1, t) * h + b.select(1, t);
    states.push_back(h);
  }
  return torch::stack(states, 1);
}

Tensor with_zeros(const Tensor& a) {
  return a.masked_fill(a.abs().lt(0.2), 0);
}

TEST(AffineScan, ComplexEqualsTheLoop) {
  torch::manual_seed(1);
  for (const int64_t tokens : {1, 2, 5, 64, 101}) {
    const Tensor a = torch::randn({2, tokens, 3}, torch::kComplexDouble), b = torch::randn_like(a);
    const Tensor state = torch::randn({2, 3}, torch::kComplexDouble), want = by_token(a, b, state);
    const auto [h, last] = ops::affine_scan(a, b, state);
    expect_near(torch::view_as_real(h), torch::view_as_real(want), 1e-11, "states");
    expect_near(torch::view_as_real(last), torch::view_as_real(want.select(1, tokens - 1)), 1e-11, "last");
  }
}

TEST(AffineScan, GradientsAlsoWhereDecayIsZeroOrNegative) {
  torch::manual_seed(2);
  const auto options = torch::TensorOptions().dtype(torch::kFloat64);
  const auto outputs = [](const std::vector<Tensor>& in) {
    const auto [h, last] = ops::affine_scan(in[0], in[1], in[2]);
    return torch::cat({h, last.unsqueeze(1)}, 1);
  };
  for (const int64_t tokens : {1, 2, 7, 12}) {
    expect_gradients_match(outputs, {with_zeros(torch::randn({2, tokens, 3}, options)),
                                     torch::randn({2, tokens, 3}, options), torch::randn({2, 3}, options)});
  }
}

TEST(AffineScan, ComplexGradients) {
  torch::manual_seed(3);
  const auto options = torch::TensorOptions().dtype(torch::kFloat64);
  const auto outputs = [](const std::vector<Tensor>& in) {
    const auto as_complex = [](const Tensor& t) { return torch::view_as_complex(t); };
    return torch::view_as_real(std::get<0>(ops::affine_scan(as_complex(in[0]), as_complex(in[1]), as_complex(in[2]))));
  };
  expect_gradients_match(outputs, {torch::randn({1, 6, 2, 2}, options), torch::randn({1, 6, 2, 2}, options),
                                   torch::randn({1, 2, 2}, options)});
}

TEST(AffineScan, SplitEqualsWholeThroughTheState) {
  torch::manual_seed(4);
  const Tensor a = with_zeros(torch::randn({2, 50, 4})), b = torch::randn({2, 50, 4});
  const auto [whole, last] = ops::affine_scan(a, b, {});
  const auto [left, middle] = ops::affine_scan(a.narrow(1, 0, 13), b.narrow(1, 0, 13), {});
  const auto [right, after] = ops::affine_scan(a.narrow(1, 13, 37), b.narrow(1, 13, 37), middle);
  expect_near(torch::cat({left, right}, 1), whole, 1e-5, "states");
  expect_near(after, last, 1e-5, "last");
}

TEST(AffineScan, LongProductsNeitherOverflowNorVanishIntoNaN) {
  const Tensor a = torch::full({1, 4096, 2}, 1e-3), b = torch::ones({1, 4096, 2});
  const auto [h, last] = ops::affine_scan(a, b, torch::full({1, 2}, 1e30));
  EXPECT_TRUE(h.isfinite().all().item<bool>());
  expect_near(last, torch::full({1, 2}, 1.0 / (1 - 1e-3)), 1e-6, "fixed point");
}

TEST(AffineScan, Bfloat16KeepsAFloat32State) {
  torch::manual_seed(5);
  const Tensor a = torch::rand({1, 20, 4}), b = torch::randn({1, 20, 4});
  const auto [h, last] = ops::affine_scan(a.to(torch::kBFloat16), b.to(torch::kBFloat16), {});
  EXPECT_EQ(h.scalar_type(), torch::kBFloat16);
  EXPECT_EQ(last.scalar_type(), torch::kFloat32);
  expect_near(last, by_token(a, b, torch::zeros({1, 4})).select(1, 19), 0.05, "bfloat16");
}

TEST(AffineScan, RefusesWrongShapes) {
  const Tensor a = torch::randn({2, 6, 3});
  EXPECT_THROW(ops::affine_scan(a, a.narrow(1, 0, 5), {}), UsageError);
  EXPECT_THROW(ops::affine_scan(a.narrow(1, 0, 0), a.narrow(1, 0, 0), {}), UsageError);
  EXPECT_THROW(ops::affine_scan(torch::randn({4}), torch::randn({4}), {}), UsageError);
  EXPECT_THROW(ops::affine_scan(a, a, torch::randn({1, 3})), UsageError);
}

}  // namespace
}  // namespace seqloom
