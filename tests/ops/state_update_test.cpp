#include <gtest/gtest.h>

#include "base/error.h"
#include "ops/causal_conv1d.h"
#include "ops/causal_conv1d_update.h"
#include "ops/selective_scan.h"
#include "ops/selective_state_update.h"
#include "support/fused_op.h"

namespace seqloom {
namespace {

using torch::Tensor;

/// y and the state after one token, fused or not.
std::pair<Tensor, Tensor> updated(const std::vector<Tensor>& in, bool softplus, bool fused,
                                  const std::optional<Tensor>& rows = {}) {
  const auto optional = [](const Tensor& t) { return t.defined() ? std::make_optional(t) : std::nullopt; };
  const Tensor state = in[0].clone();
  ops::set_fused_enabled(fused);
  const Tensor y = ops::selective_state_update(state, in[1], in[2], in[3], in[4], in[5], optional(in[6]),
                                               optional(in[7]), optional(in[8]), softplus, rows);
  ops::set_fused_enabled(true);
  return {y, state};
}

/// state, x, dt, A, B, C, D, z, dt_bias with heads; rates tied along the states if asked for.
std::vector<Tensor> inputs(int64_t batch, int64_t heads, int64_t width, int64_t states, int64_t groups, bool tied) {
  const Tensor A = -torch::rand({heads, tied ? 1 : width, tied ? 1 : states}) - 0.1;
  return {torch::randn({batch, heads, width, states}),
          torch::randn({batch, heads, width}),
          torch::rand({batch, heads, width}),
          A.expand({heads, width, states}),
          torch::randn({batch, groups, states}),
          torch::randn({batch, groups, states}),
          torch::randn({heads, width}),
          torch::randn({batch, heads, width}),
          torch::rand({heads, width})};
}

TEST(SelectiveStateUpdate, FusedEqualsTheReferenceOnEveryTarget) {
  torch::manual_seed(1);
  for (const auto& [batch, heads, width, states, groups, tied] :
       {std::tuple{2, 1, 70, 16, 1, false}, {3, 4, 9, 5, 2, false}, {1, 2, 64, 128, 1, true}, {2, 2, 3, 33, 2, true}}) {
    auto in = inputs(batch, heads, width, states, groups, tied);
    for (const bool all : {true, false}) {
      if (!all) in[6] = in[7] = in[8] = Tensor();
      const auto want = updated(in, all, false);
      on_every_target([&] {
        const auto got = updated(in, all, true);
        expect_near(got.first, want.first, 1e-4, "y");
        expect_near(got.second, want.second, 1e-4, "state");
      });
    }
  }
}

TEST(SelectiveStateUpdate, RowsOfALargerState) {
  torch::manual_seed(2);
  auto in = inputs(3, 2, 8, 16, 1, false);
  in[0] = torch::randn({7, 2, 8, 16});
  const Tensor rows = torch::tensor({5, -1, 0}, torch::kInt32);
  for (const bool fused : {false, true}) {
    const auto [y, state] = updated(in, true, fused, rows);
    EXPECT_TRUE(torch::equal(y[1], torch::zeros({2, 8})));
    EXPECT_TRUE(torch::equal(state.narrow(0, 1, 4), in[0].narrow(0, 1, 4)));
    auto first = in;
    first[0] = in[0].narrow(0, 5, 1);
    for (const size_t i : {1, 2, 4, 5, 7}) first[i] = in[i].narrow(0, 0, 1);
    const auto alone = updated(first, true, fused);
    expect_near(y[0], alone.first[0], 1e-6, "y");
    expect_near(state[5], alone.second[0], 1e-6, "state");
  }
  EXPECT_THROW(updated(in, true, true, torch::tensor({5, 7, 0})), UsageError);
}

TEST(SelectiveStateUpdate, StepsMakeTheScan) {
  torch::manual_seed(3);
  const Tensor u = torch::randn({2, 12, 6}), delta = torch::randn({2, 12, 6}), A = -torch::rand({12, 4});
  const Tensor B = torch::randn({2, 3, 4, 6}), C = torch::randn({2, 3, 4, 6}), D = torch::randn({12});
  const auto [want, last] = ops::selective_scan(u, delta, A, B, C, D, {}, {}, true, {});
  const Tensor state = torch::zeros({2, 12, 4});
  for (int64_t t = 0; t < 6; ++t) {
    const auto at = [&](const Tensor& m) { return m.select(-1, t); };
    const Tensor y = ops::selective_state_update(state, at(u), at(delta), A, at(B), at(C), D, {}, {}, true);
    expect_near(y, at(want), 1e-4, "y");
  }
  expect_near(state, last, 1e-4, "state");
}

TEST(CausalConv1dUpdate, StepsMakeTheConvolution) {
  torch::manual_seed(4);
  const Tensor x = torch::randn({2, 70, 9}), weight = torch::randn({70, 4}), bias = torch::randn({70});
  const Tensor want = std::get<0>(ops::causal_conv1d(x, weight, bias, {}, true));
  for (const int64_t length : {3, 4, 8}) {
    const Tensor state = torch::zeros({2, 70, length}), ring = torch::zeros({2, 70, length});
    for (int64_t t = 0; t < 9; t += 3) {
      const Tensor tokens = x.narrow(2, t, 3), part = want.narrow(2, t, 3);
      expect_near(ops::causal_conv1d_update(tokens, state, weight, bias, true), part, 1e-5, "window");
      const Tensor seen = torch::full({2}, t, torch::kInt64);
      expect_near(ops::causal_conv1d_update(tokens, ring, weight, bias, true, seen), part, 1e-5, "ring");
    }
    EXPECT_TRUE(torch::equal(state, x.narrow(2, 9 - std::min<int64_t>(9, length), length)));
  }
}

TEST(CausalConv1dUpdate, RowsWithoutAStateAreZero) {
  torch::manual_seed(5);
  const Tensor x = torch::randn({2, 5, 1}), weight = torch::randn({5, 3}), bias = torch::randn({5});
  const Tensor state = torch::randn({4, 5, 2}), before = state.clone(), rows = torch::tensor({-1, 3});
  const Tensor y = ops::causal_conv1d_update(x, state, weight, bias, true, {}, rows);
  EXPECT_TRUE(torch::equal(y[0], torch::zeros({5, 1})));
  EXPECT_TRUE(torch::equal(state.narrow(0, 0, 3), before.narrow(0, 0, 3)));
  EXPECT_FALSE(torch::equal(state[3], before[3]));
  EXPECT_THROW(ops::causal_conv1d_update(x, state, weight, bias, true), UsageError);
}

}  // namespace
}  // namespace seqloom
