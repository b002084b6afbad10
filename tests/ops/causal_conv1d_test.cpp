#include "ops/causal_conv1d.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include "base/error.h"
#include "ops/fused.h"
#include "support/compare.h"
#include "support/gradcheck.h"

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

TEST(CausalConv1d, GradientsOfTheReference) {
  torch::manual_seed(4);
  const auto random = [](torch::IntArrayRef shape) { return torch::randn(shape, torch::kFloat64); };
  for (const int64_t width : {1, 4}) {
    for (const bool silu : {false, true}) {
      expect_gradients_match(
          [&](const std::vector<Tensor>& in) {
            const auto [y, state] = ops::causal_conv1d(in[0], in[1], in[2], in[3], silu);
            return torch::cat({y, state}, 2);
          },
          {random({2, 3, 5}), random({3, width}), random({3}), random({2, 3, width - 1})});
    }
  }
}

TEST(CausalConv1d, TakesBfloat16AndKeepsAFloat32Window) {
  torch::manual_seed(5);
  const Tensor x = torch::randn({2, 12, 20}), weight = torch::randn({12, 4});
  const auto [exact, window] = ops::causal_conv1d(x, weight, {}, {}, true);
  const auto [y, state] = ops::causal_conv1d(x.to(torch::kBFloat16), weight, {}, {}, true);
  EXPECT_EQ(y.scalar_type(), torch::kBFloat16);
  EXPECT_EQ(state.scalar_type(), torch::kFloat32);
  expect_near(y.to(torch::kFloat32), exact, 0.02, "bfloat16");
}

TEST(CausalConv1d, NaNReachesTheOutput) {
  for (const bool silu : {false, true}) {
    Tensor x = torch::randn({1, 20, 6});
    x[0][19][2] = std::numeric_limits<float>::quiet_NaN();
    EXPECT_TRUE(std::get<0>(ops::causal_conv1d(x, torch::ones({20, 3}), {}, {}, silu))[0][19][4].isnan().item<bool>());
  }
}

TEST(CausalConv1d, TheFusedKernelRefusesASecondDerivative) {
  const Tensor x = torch::randn({1, 4, 6}).requires_grad_(true);
  const Tensor loss = std::get<0>(ops::causal_conv1d(x, torch::ones({4, 3}), {}, {}, true)).sum();
  EXPECT_ANY_THROW(torch::autograd::grad({loss}, {x}, {}, true, /*create_graph=*/true));
}

TEST(CausalConv1d, RefusesWrongShapes) {
  const Tensor x = torch::randn({2, 4, 6}), weight = torch::randn({4, 3});
  EXPECT_THROW(ops::causal_conv1d(torch::ones({2, 4, 6}, torch::kLong), weight, {}, {}, false), UsageError);
  EXPECT_THROW(ops::causal_conv1d(torch::randn({2, 4, 0}), weight, {}, {}, false), UsageError);
  EXPECT_THROW(ops::causal_conv1d(x, torch::randn({5, 3}), {}, {}, false), UsageError);
  EXPECT_THROW(ops::causal_conv1d(x, weight, torch::randn({3}), {}, false), UsageError);
  EXPECT_THROW(ops::causal_conv1d(x, weight, {}, torch::randn({2, 4, 3}), false), UsageError);
}

}  // namespace
}  // namespace seqloom
