// The fused kernel of the delta rule against its reference; the reference against its definition is in
// linear_recurrences_test.cpp.
#include "ops/delta_rule.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <limits>

#include "base/error.h"
#include "ops/rms_norm.h"
#include "support/fused_op.h"

namespace seqloom {
namespace {

using torch::Tensor;

constexpr double kNoGates = 0;

struct Shape {
  int64_t batch, tokens, heads, keys, values;
  double strength;  // gates are drawn from (-strength, 0)
};

std::ostream& operator<<(std::ostream& out, const Shape& s) {
  return out << "B" << s.batch << " T" << s.tokens << " H" << s.heads << " K" << s.keys << " V" << s.values << " gates "
             << s.strength;
}

/// q, k, v, beta, log decay (undefined without), state; q and k are views of wider rows, beta of other heads.
std::vector<Tensor> make_inputs(const Shape& s) {
  const Tensor qk = torch::randn({s.batch, s.tokens, s.heads, 2 * s.keys + 3});
  const Tensor gate = -torch::rand({s.batch, s.tokens, s.heads}) * s.strength;
  return {qk.narrow(-1, 0, s.keys),
          ops::l2_norm(qk.narrow(-1, s.keys + 2, s.keys), 1e-6),
          torch::randn({s.batch, s.tokens, s.heads, s.values}),
          torch::rand({s.batch, s.tokens, 2 * s.heads}).slice(-1, 0, 2 * s.heads, 2),
          s.strength == kNoGates ? Tensor() : gate,
          torch::randn({s.batch, s.heads, s.keys, s.values})};
}

std::tuple<Tensor, Tensor> delta(const std::vector<Tensor>& in, const std::optional<Tensor>& cu_seqlens = {}) {
  const auto gate = in[4].defined() ? std::make_optional(in[4]) : std::nullopt;
  return ops::delta_rule(in[0], in[1], in[2], in[3], gate, 0.5, in[5], cu_seqlens);
}

/// The gradients of a weighted sum of outputs and final state, the outputs and the state.
std::vector<Tensor> results(const std::vector<Tensor>& inputs, bool fused,
                            const std::optional<Tensor>& cu_seqlens = {}) {
  std::vector<Tensor> in, leaves;
  for (const auto& t : inputs) {
    in.push_back(t.defined() ? t.detach().requires_grad_(true) : Tensor());
    if (t.defined()) leaves.push_back(in.back());
  }
  ops::set_fused_enabled(fused);
  const auto [o, state] = delta(in, cu_seqlens);
  torch::manual_seed(3);
  const auto weighted = [](const Tensor& t) { return (t * torch::randn(t.sizes()).to(t)).sum(); };
  auto all = torch::autograd::grad({weighted(o) + weighted(state)}, leaves);
  ops::set_fused_enabled(true);
  all.push_back(o.detach());
  all.push_back(state.detach());
  return all;
}

class FusedDelta : public testing::TestWithParam<Shape> {};

TEST_P(FusedDelta, EqualsTheReferenceOnEveryTarget) {
  torch::manual_seed(1);
  const auto inputs = make_inputs(GetParam());
  const auto want = results(in_float64(inputs), false);
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    hwy::SetSupportedTargetsForTest(target);
    const auto got = results(inputs, true);
    hwy::SetSupportedTargetsForTest(0);
    expect_all_near(got, want, 1e-5, hwy::TargetName(target));
  }
}

TEST_P(FusedDelta, EqualsTheReferenceWithoutGradients) {
  torch::NoGradGuard no_grad;
  torch::manual_seed(2);
  Shape shape = GetParam();
  for (const int64_t tokens : {int64_t{1}, int64_t{3}, int64_t{7}, shape.tokens}) {
    shape.tokens = tokens;
    const auto in = make_inputs(shape);
    ops::set_fused_enabled(false);
    const auto [want, want_state] = delta(in_float64(in));
    ops::set_fused_enabled(true);
    for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
      hwy::SetSupportedTargetsForTest(target);
      const auto [o, state] = delta(in);
      hwy::SetSupportedTargetsForTest(0);
      expect_near(o, want, 1e-5, hwy::TargetName(target));
      expect_near(state, want_state, 1e-5, hwy::TargetName(target));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, FusedDelta,
                         testing::Values(Shape{2, 130, 3, 16, 32, 0.1}, Shape{1, 64, 2, 64, 64, 1},
                                         Shape{1, 200, 2, 24, 40, 6}, Shape{2, 77, 1, 5, 7, 30},
                                         Shape{1, 90, 2, 17, 33, 300}, Shape{2, 1, 2, 8, 8, 1},
                                         Shape{1, 15, 1, 1, 1, 300}, Shape{1, 129, 2, 80, 200, 0.5},
                                         Shape{2, 100, 2, 64, 16, kNoGates}, Shape{1, 17, 1, 3, 65, kNoGates},
                                         Shape{1, 150, 3, 48, 80, kNoGates}));

TEST(DeltaRuleKernel, PackedSequencesEqualEachOneAlone) {
  // of several chunks, of none, of one token and of fewer than the recurrence takes
  const Tensor cu_seqlens = torch::tensor({0, 130, 130, 131, 136, 200}, torch::kInt32);
  for (const double strength : {kNoGates, 2.0}) {
    torch::manual_seed(6);
    auto in = make_inputs({1, 200, 3, 20, 12, strength});
    in[5] = torch::randn({5, 3, 20, 12});
    std::vector<Tensor> os, states;
    for (int64_t s = 0; s < 5; ++s) {
      const int64_t begin = cu_seqlens[s].item<int64_t>(), size = cu_seqlens[s + 1].item<int64_t>() - begin;
      auto part = in;
      for (size_t i = 0; i < 5; ++i) part[i] = in[i].defined() ? in[i].narrow(1, begin, size) : in[i];
      part[5] = in[5].narrow(0, s, 1);
      const auto [o, state] = size > 0 ? delta(part) : std::tuple(part[2], part[5]);
      os.push_back(o);
      states.push_back(state);
    }
    const auto want = results(in_float64(in), false, cu_seqlens);
    expect_near(want[want.size() - 2], torch::cat(os, 1), 1e-5, "outputs");
    expect_near(want.back(), torch::cat(states), 1e-5, "states");
    for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
      hwy::SetSupportedTargetsForTest(target);
      const auto got = results(in, true, cu_seqlens);
      hwy::SetSupportedTargetsForTest(0);
      expect_all_near(got, want, 1e-5, hwy::TargetName(target));
    }
    EXPECT_THROW(delta(in, torch::tensor({0, 100})), UsageError);
  }
}

TEST(DeltaRuleKernel, FewPackedTokensWithoutGradientsGoByTheRecurrence) {
  const torch::NoGradGuard no_grad;
  torch::manual_seed(7);
  auto in = make_inputs({1, 9, 2, 8, 12, 2.0});
  in[5] = torch::randn({3, 2, 8, 12});
  const Tensor cu_seqlens = torch::tensor({0, 5, 6, 9});
  const auto [o, state] = delta(in, cu_seqlens);
  const auto [want, want_state] = delta(in_float64(in), cu_seqlens);
  expect_near(o, want, 1e-5, "outputs");
  expect_near(state, want_state, 1e-5, "states");
}

TEST(DeltaRuleKernel, BroadcastHeadsNeedNoCopies) {
  torch::manual_seed(4);
  auto in = make_inputs({2, 70, 4, 16, 16, 1});
  for (const size_t i : {0, 1}) in[i] = in[i].narrow(2, 0, 1).expand({2, 70, 4, 16});
  in[3] = torch::ones({1, 1, 1}).expand({2, 70, 4});
  expect_all_near(results(in, true), results(in_float64(in), false), 1e-5, "shared keys");
}

TEST(DeltaRuleKernel, DoesNotDependOnTheNumberOfThreads) {
  torch::manual_seed(5);
  const auto in = make_inputs({2, 300, 3, 32, 32, 2});
  const int threads = at::get_num_threads();
  torch::set_num_threads(1);
  const auto one = results(in, true);
  torch::set_num_threads(2);
  const auto two = results(in, true);
  torch::set_num_threads(threads);
  for (size_t i = 0; i < one.size(); ++i) EXPECT_TRUE(one[i].equal(two[i])) << i;
}

TEST(DeltaRuleKernel, AGateThatForgetsAllBeginsAnew) {
  torch::manual_seed(6);
  for (const double gate : {-1e4, -std::numeric_limits<double>::infinity()}) {
    auto in = make_inputs({1, 150, 2, 16, 24, 0.1});
    for (const int64_t t : {0, 20, 21, 64, 100}) in[4].select(1, t).fill_(gate);
    const auto got = results(in, true);
    expect_all_near(got, results(in_float64(in), false), 1e-5, "gate " + std::to_string(gate));
    EXPECT_EQ(got[4].select(1, 100).abs().max().item<float>(), 0) << "nothing passes, so nothing depends on the gate";
    EXPECT_EQ(got[5].abs().max().item<float>(), 0) << "the initial state is forgotten";
  }
}

TEST(DeltaRuleKernel, ANanInTheGatesShows) {
  auto in = make_inputs({1, 100, 1, 8, 8, 1});
  in[4][0][20][0] = std::numeric_limits<float>::quiet_NaN();
  const auto [o, state] = delta(in);
  EXPECT_TRUE(o.narrow(1, 20, 80).isnan().all().item<bool>());
  EXPECT_TRUE(o.narrow(1, 0, 16).isfinite().all().item<bool>()) << "tokens of an earlier block";
  EXPECT_TRUE(state.isnan().all().item<bool>());
}

TEST(DeltaRuleKernel, WritingStrengthUpToTwoStaysExact) {
  torch::manual_seed(7);
  auto in = make_inputs({1, 256, 2, 32, 32, kNoGates});
  in[3] = in[3] * 2;
  expect_all_near(results(in, true), results(in_float64(in), false), 1e-5, "negative eigenvalues");
}

TEST(DeltaRuleKernel, NarrowTypesAreWidened) {
  torch::manual_seed(8);
  auto in = make_inputs({1, 70, 2, 16, 16, 1});
  for (const size_t i : {0, 1, 2}) in[i] = in[i].to(torch::kBFloat16);
  const auto [o, state] = delta(in);
  EXPECT_EQ(o.scalar_type(), torch::kBFloat16);
  EXPECT_EQ(state.scalar_type(), torch::kFloat32);
  expect_near(state, std::get<1>(delta(in_float64(in))), 1e-5, "state");
}

TEST(DeltaRuleKernel, ReadsAndWritesBfloat16AndSumsInFloat32) {
  torch::manual_seed(10);
  const Tensor cu_seqlens = torch::tensor({0, 70, 73, 73, 100});
  auto in = make_inputs({1, 100, 2, 20, 40, 1});
  in[5] = torch::randn({4, 2, 20, 40});
  for (size_t i = 0; i < 5; ++i) in[i] = in[i].to(torch::kBFloat16);
  const auto want = results(in_float64(in), false, cu_seqlens);
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    hwy::SetSupportedTargetsForTest(target);
    const auto got = results(in, true, cu_seqlens);
    hwy::SetSupportedTargetsForTest(0);
    expect_all_near(got, want, 0.005, hwy::TargetName(target));  // one rounding to 8 bits
    for (const size_t i : {0, 1, 2, 3, 4}) EXPECT_EQ(got[i].scalar_type(), torch::kBFloat16);
    expect_near(got.back(), want.back(), 1e-5, "the state is not rounded");
    const torch::NoGradGuard no_grad;  // short rows by the recurrence, beside long ones
    const auto [o, state] = delta(in, cu_seqlens);
    expect_near(o, want[want.size() - 2], 0.005, "outputs without gradients");
    expect_near(state, want.back(), 1e-5, "state without gradients");
  }
}

TEST(DeltaRuleKernel, SecondDerivativesGoThroughTheReference) {
  torch::manual_seed(9);
  const auto in = make_inputs({1, 10, 1, 4, 3, 1});
  const auto second = [&](bool fused) {
    ops::set_fused_enabled(fused);
    const Tensor k = in[1].detach().requires_grad_(true), beta = in[3].detach().requires_grad_(true),
                 g = in[4].detach().requires_grad_(true);
    const Tensor o = std::get<0>(ops::delta_rule(in[0], k, in[2], beta, g, 1, {}));
    const auto first = torch::autograd::grad({o.square().sum()}, {k, beta, g}, {}, true, /*create_graph=*/true);
    const Tensor sum = first[0].square().sum() + first[1].square().sum() + first[2].square().sum();
    const auto all = torch::autograd::grad({sum}, {k, beta, g});
    ops::set_fused_enabled(true);
    return all;
  };
  expect_all_near(second(true), second(false), 1e-4, "second derivatives");
}

}  // namespace
}  // namespace seqloom
