#include "ops/polynomial_features.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "support/compare.h"

namespace seqloom {
namespace {

using torch::Tensor;

TEST(PolynomialFeatures, TheirProductIsThePolynomialOfTheProduct) {
  torch::manual_seed(1);
  for (const int64_t degree : {1, 2, 3, 5}) {
    const Tensor q = torch::randn({7, 4}, torch::kFloat64), k = torch::randn({7, 4}, torch::kFloat64);
    const Tensor coeff = torch::rand({degree + 1}, torch::kFloat64);
    const Tensor phi = ops::polynomial_features(q, coeff);
    EXPECT_EQ(phi.size(-1), ops::polynomial_width(4, degree));
    const Tensor product = (q * k).sum(-1);
    Tensor want = torch::zeros_like(product);
    for (int64_t j = 0; j <= degree; ++j) want = want + coeff[j].square() * product.pow(j);
    expect_near((phi * ops::polynomial_features(k, coeff)).sum(-1), want, 1e-10, "kernel");
  }
}

TEST(PolynomialFeatures, ElementwiseIsTheSameWithOneChannel) {
  const Tensor x = torch::randn({5, 1}, torch::kFloat64), coeff = torch::rand({4}, torch::kFloat64);
  expect_near(ops::elementwise_polynomial(x, coeff), ops::polynomial_features(x, coeff).sum(-1, true), 1e-12, "sum");
}

TEST(PolynomialFeatures, RefuseWhatIsTooWideNamingTheWidth) {
  EXPECT_EQ(ops::polynomial_width(6, 2), 28);
  try {
    ops::polynomial_width(64, 3);
    FAIL() << "not refused";
  } catch (const UsageError& error) {
    EXPECT_NE(std::string(error.what()).find("47905"), std::string::npos) << error.what();
  }
  EXPECT_THROW(ops::polynomial_width(64, 0), UsageError);
  EXPECT_THROW(ops::polynomial_features(torch::randn({3}), torch::ones({1})), UsageError);
}

}  // namespace
}  // namespace seqloom
