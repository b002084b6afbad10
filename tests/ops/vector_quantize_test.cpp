#include <gtest/gtest.h>

#include "base/error.h"
#include "ops/vector_quantize.h"
#include "support/compare.h"

namespace seqloom::ops {
namespace {

using torch::Tensor;

TEST(VectorQuantize, TakesTheNearestCodewordOfTheHead) {
  torch::manual_seed(1);
  const Tensor x = torch::randn({2, 3, 7, 4}), words = torch::randn({3, 5, 4});
  const auto [codes, y, loss] = vector_quantize(x, words, {});
  double total = 0;
  for (int64_t b = 0; b < 2; ++b) {
    for (int64_t h = 0; h < 3; ++h) {
      for (int64_t t = 0; t < 7; ++t) {
        const Tensor distance = (words[h] - x[b][h][t]).square().sum(-1);
        EXPECT_EQ(codes[b][h][t].item<int64_t>(), distance.argmin().item<int64_t>());
        total += distance.min().item<double>();
        expect_near(y[b][h][t], words[h][codes[b][h][t].item<int64_t>()], 0, "codeword");
      }
    }
  }
  EXPECT_NEAR(loss.item<double>(), total / 14, 1e-5) << "a mean over B and L, a sum over heads";
}

TEST(VectorQuantize, TheFirstOfEqualCodewordsWins) {
  const Tensor words = torch::ones({1, 4, 2});
  EXPECT_EQ(std::get<0>(vector_quantize(torch::randn({1, 1, 5, 2}), words, {})).max().item<int64_t>(), 0);
}

TEST(VectorQuantize, GradientsGoStraightThroughAndNotToTheCodebook) {
  const Tensor x = torch::randn({2, 1, 6, 3}).requires_grad_(true);
  const Tensor c_sum = torch::randn({1, 4, 3}).requires_grad_(true), c_count = torch::rand({1, 4}) + 0.5;
  const auto [codes, y, loss] = vector_quantize(x, codebook(c_sum, c_count, 0.01), {});
  const Tensor cotangent = torch::randn_like(y);
  EXPECT_TRUE(torch::autograd::grad({(y * cotangent).sum()}, {x}, {}, true)[0].equal(cotangent));
  const auto gradients = torch::autograd::grad({loss}, {x, c_sum}, {}, true, false, /*allow_unused=*/true);
  expect_near(gradients[0], 2 * (x - y).detach() / 12, 1e-6, "commit gradient");
  EXPECT_FALSE(gradients[1].defined());
}

TEST(VectorQuantize, PaddingIsQuantisedButCostsNothing) {
  const Tensor x = torch::randn({1, 1, 4, 2}), words = torch::randn({1, 3, 2});
  const Tensor keep = torch::tensor({{true, false, true, false}});
  const auto [codes, y, loss] = vector_quantize(x, words, keep);
  const Tensor errors = (x - y).square().sum(-1)[0][0];
  EXPECT_NEAR(loss.item<double>(), (errors[0] + errors[2]).item<double>() / 4, 1e-6);
  EXPECT_TRUE(codes.equal(std::get<0>(vector_quantize(x, words, {}))));
}

TEST(VectorQuantize, ARareCodeKeepsAFiniteCodeword) {
  const Tensor words = codebook(torch::ones({1, 2, 3}), torch::tensor({{0.0, 2.0}}), 0.01);
  expect_near(words[0][0], torch::full({3}, 100.0), 1e-6, "clamped count");
  expect_near(words[0][1], torch::full({3}, 0.5), 1e-6, "mean");
}

TEST(VectorQuantize, SumsByCodeLeavePaddingOut) {
  const Tensor values = torch::randn({2, 5, 3}), codes = torch::tensor({{0, 2, 2, -1, 0}, {1, 1, 1, 1, -1}});
  const auto [sums, counts] = sums_by_code(values, codes, 3);
  EXPECT_TRUE(counts.equal(torch::tensor({{2.0F, 0.0F, 2.0F}, {0.0F, 4.0F, 0.0F}})));
  expect_near(sums[0][0], values[0][0] + values[0][4], 1e-6, "code 0");
  expect_near(sums[1][1], values[1].narrow(0, 0, 4).sum(0), 1e-6, "code 1");
}

TEST(VectorQuantize, RefusesWhatDoesNotFit) {
  EXPECT_THROW(vector_quantize(torch::randn({1, 2, 3, 4}), torch::randn({2, 5, 3}), {}), UsageError);
  EXPECT_THROW(vector_quantize(torch::randn({1, 2, 3, 4}), torch::randn({1, 5, 4}), {}), UsageError);
  EXPECT_THROW(vector_quantize(torch::randn({1, 1, 3, 4}), torch::randn({1, 5, 4}), torch::ones({1, 4})), UsageError);
  EXPECT_THROW(codebook(torch::randn({1, 5, 4}), torch::ones({1, 4}), 0.01), UsageError);
}

}  // namespace
}  // namespace seqloom::ops
