#include "ops/causal_conv1d.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include "base/error.h"
#include "ops/fused.h"
#include "support/compare.h"

namespace seqloom {
namespace {

using torch::Tensor;

std::vector<Tensor> results(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& state, bool silu,
                            bool fused) {
  std::vector<Tensor> leaves;
  const auto leaf = [&](const Tensor& t) {
    leaves.push_back(t.detach().clone().requires_grad_(true));
    return leaves.back();
  };
  const Tensor x_leaf = leaf(x), weight_leaf = leaf(weight), state_leaf = leaf(state);
  const auto bias_leaf = bias.defined() ? std::make_optional(leaf(bias)) : std::nullopt;
  ops::set_fused_enabled(fused);
  const auto [y, after] = ops::causal_conv1d(x_leaf, weight_leaf, bias_leaf, state_leaf, silu);
  torch::manual_seed(3);
  const Tensor loss = (y * torch::randn(y.sizes())).sum() + (after * torch::randn(after.sizes())).sum();
  auto all = torch::autograd::grad({loss}, leaves, {}, false, false, /*allow_unused=*/true);
  ops::set_fused_enabled(true);
  all.push_back(y.detach());
  all.push_back(after.detach());
  return all;
}

TEST(CausalConv1d, FusedEqualsTheReferenceOnEveryTarget) {
  torch::manual_seed(1);
  for (const auto& [batch, channels, tokens, width, with_bias, silu] : {std::tuple{2, 16, 40, 4, true, true},
                                                                        {1, 37, 300, 4, true, true},
                                                                        {3, 5, 1, 3, false, false},
                                                                        {2, 8, 2, 4, true, true},
                                                                        {1, 24, 520, 1, true, false},
                                                                        {2, 11, 9, 7, false, true}}) {
    const Tensor x = torch::randn({batch, tokens, channels}).transpose(1, 2), weight = torch::randn({channels, width});
    const Tensor bias = with_bias ? torch::randn({channels}) : Tensor(),
                 state = torch::randn({batch, channels, width - 1});
    const auto want = results(x, weight, bias, state, silu, false);
    for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
      hwy::SetSupportedTargetsForTest(target);
      const auto got = results(x, weight, bias, state, silu, true);
      hwy::SetSupportedTargetsForTest(0);
      for (size_t i = 0; i < want.size(); ++i) {
        if (want[i].defined()) expect_near(got[i], want[i], 1e-4, hwy::TargetName(target));
      }
    }
  }
}

TEST(CausalConv1d, SplitEqualsWhole) {
  torch::manual_seed(2);
  const Tensor x = torch::randn({2, 12, 20}), weight = torch::randn({12, 4});
  const auto [y, last] = ops::causal_conv1d(x, weight, {}, {}, true);
  std::optional<Tensor> state;
  std::vector<Tensor> parts;
  int64_t begin = 0;
  for (const int64_t size : {1, 2, 1, 16}) {
    const auto [some, after] = ops::causal_conv1d(x.narrow(2, begin, size), weight, {}, state, true);
    parts.push_back(some);
    state = after;
    begin += size;
  }
  expect_near(torch::cat(parts, 2), y, 1e-6, "outputs");
  expect_near(*state, last, 0, "window");
}

TEST(CausalConv1d, RefusesWrongShapes) {
  const Tensor x = torch::randn({2, 4, 6}), weight = torch::randn({4, 3});
  EXPECT_THROW(ops::causal_conv1d(torch::randn({2, 4, 0}), weight, {}, {}, false), UsageError);
  EXPECT_THROW(ops::causal_conv1d(x, torch::randn({5, 3}), {}, {}, false), UsageError);
  EXPECT_THROW(ops::causal_conv1d(x, weight, torch::randn({3}), {}, false), UsageError);
  EXPECT_THROW(ops::causal_conv1d(x, weight, {}, torch::randn({2, 4, 3}), false), UsageError);
}

}  // namespace
}  // namespace seqloom
