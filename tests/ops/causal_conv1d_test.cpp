#include "ops/causal_conv1d.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include "base/error.h"
#include "support/fused_op.h"

namespace seqloom {
namespace {

using torch::Tensor;

/// Gradients of a weighted sum of outputs and last inputs, then these.
std::vector<Tensor> results(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& state, bool silu,
                            bool fused, const std::optional<Tensor>& cu_seqlens = {}) {
  std::vector<Tensor> leaves;
  const auto leaf = [&](const Tensor& t) {
    leaves.push_back(t.detach().requires_grad_(true));
    return leaves.back();
  };
  const Tensor x_leaf = leaf(x), weight_leaf = leaf(weight), state_leaf = leaf(state);
  const auto bias_leaf = bias.defined() ? std::make_optional(leaf(bias)) : std::nullopt;
  ops::set_fused_enabled(fused);
  const auto [y, after] = ops::causal_conv1d(x_leaf, weight_leaf, bias_leaf, state_leaf, silu, cu_seqlens);
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
                                                                        {2, 11, 9, 7, false, true},
                                                                        {1, 19, 270, 3, true, true},
                                                                        {2, 33, 70, 2, false, true},
                                                                        {1, 6, 80, 70, true, true}}) {
    const Tensor x = torch::randn({batch, tokens, channels}).transpose(1, 2), weight = torch::randn({channels, width});
    const Tensor bias = with_bias ? torch::randn({channels}) : Tensor(),
                 state = torch::randn({batch, channels, width - 1});
    const auto want = results(x, weight, bias, state, silu, false);
    on_every_target([&] {
      const auto got = results(x, weight, bias, state, silu, true);
      for (size_t i = 0; i < want.size(); ++i) {
        if (want[i].defined()) expect_near(got[i], want[i], 1e-4, std::to_string(i));
      }
    });
  }
}

TEST(CausalConv1d, Bfloat16IsReadAsItIsOnEveryTarget) {
  torch::manual_seed(4);
  for (const auto& [tokens, width] : {std::pair{300, 4}, {2, 3}, {20, 9}}) {
    const Tensor x = torch::randn({2, tokens, 37}).to(torch::kBFloat16).transpose(1, 2);
    const Tensor weight = torch::randn({37, width}), bias = torch::randn({37}),
                 state = torch::randn({2, 37, width - 1});
    const auto want = results(x, weight, bias, state, true, false);
    on_every_target([&] {
      const auto got = results(x, weight, bias, state, true, true);
      for (size_t i = 0; i < want.size(); ++i) {
        EXPECT_EQ(got[i].scalar_type(), want[i].scalar_type());
        expect_near(got[i], want[i], 0.02, std::to_string(i));
      }
    });
  }
}

TEST(CausalConv1d, RowsMayLieFurtherApartThanTheirWidth) {
  torch::manual_seed(5);
  const Tensor both = torch::randn({2, 40, 48}), weight = torch::randn({24, 4}), state = torch::randn({2, 24, 3});
  const Tensor part = both.narrow(2, 24, 24).transpose(1, 2);
  const auto want = results(part.contiguous(), weight, {}, state, true, true);
  const auto got = results(part, weight, {}, state, true, true);
  for (const size_t i : {0, 1, 2, 3, 4}) EXPECT_TRUE(torch::equal(got[i], want[i])) << i;
}

TEST(CausalConv1d, PackedSequencesEqualEachOneAlone) {
  torch::manual_seed(6);
  const Tensor x = torch::randn({1, 620, 20}).transpose(1, 2), weight = torch::randn({20, 4}),
               bias = torch::randn({20}), state = torch::randn({6, 20, 3});
  const Tensor cu_seqlens = torch::tensor({0, 33, 33, 35, 36, 600, 620}, torch::kInt32);
  std::vector<Tensor> ys, states;
  for (int64_t s = 0; s < 6; ++s) {
    const int64_t begin = cu_seqlens[s].item<int64_t>(), size = cu_seqlens[s + 1].item<int64_t>() - begin;
    const Tensor part = x.narrow(2, begin, size), before = state.narrow(0, s, 1);
    const auto [y, last] = size > 0 ? ops::causal_conv1d(part, weight, bias, before, true) : std::tuple(part, before);
    ys.push_back(y);
    states.push_back(last);
  }
  const auto [y, last] = ops::causal_conv1d(x, weight, bias, state, true, cu_seqlens);
  expect_near(y, torch::cat(ys, 2), 1e-6, "outputs");
  expect_near(last, torch::cat(states), 0, "states");
  const auto want = results(x, weight, bias, state, true, false, cu_seqlens);
  on_every_target([&] {
    const auto got = results(x, weight, bias, state, true, true, cu_seqlens);
    for (size_t i = 0; i < want.size(); ++i) expect_near(got[i], want[i], 1e-4, std::to_string(i));
  });
  for (const Tensor& wrong : {torch::tensor({0, 119}), torch::tensor({0, 630, 620}), torch::tensor({0.0, 620.0}),
                              torch::zeros({0}, torch::kInt64)}) {
    EXPECT_THROW(ops::causal_conv1d(x, weight, bias, {}, true, wrong), UsageError);
  }
}

TEST(CausalConv1d, SecondDerivativesAreThoseOfTheReference) {
  const auto second = [](bool fused) {
    torch::manual_seed(7);
    std::vector<Tensor> leaves;
    for (const std::vector<int64_t>& shape : std::vector<std::vector<int64_t>>{{1, 5, 17}, {5, 4}, {5}, {3, 5, 3}}) {
      leaves.push_back(torch::randn(shape).requires_grad_(true));
    }
    ops::set_fused_enabled(fused);
    const auto [y, last] =
        ops::causal_conv1d(leaves[0], leaves[1], leaves[2], leaves[3], true, torch::tensor({0, 8, 10, 17}));
    const auto first = torch::autograd::grad({y.pow(2).sum() + last.pow(2).sum()}, leaves, {}, true, true);
    Tensor norm = torch::zeros({});
    for (const Tensor& g : first) norm = norm + g.pow(2).sum();
    ops::set_fused_enabled(true);
    return torch::autograd::grad({norm}, leaves);
  };
  const auto want = second(false), got = second(true);
  for (size_t i = 0; i < want.size(); ++i) expect_near(got[i], want[i], 1e-4, "second derivative");
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
  EXPECT_THROW(ops::causal_conv1d(x, weight, {}, {}, false, torch::tensor({0, 6, 12})), UsageError);
}

}  // namespace
}  // namespace seqloom
