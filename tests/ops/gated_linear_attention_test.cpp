// The fused kernel of gated linear attention against its reference.
#include "ops/gated_linear_attention.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <limits>

#include "base/error.h"
#include "ops/rms_norm.h"
#include "support/fused_op.h"

namespace seqloom {
namespace {

using torch::Tensor;

enum class Gates { kNone, kHead, kChannel };

struct Shape {
  int64_t batch, tokens, heads, keys, values;
  Gates gates;
  double strength;  // gates are drawn from (-strength, 0)
};

std::ostream& operator<<(std::ostream& out, const Shape& s) {
  return out << "B" << s.batch << " T" << s.tokens << " H" << s.heads << " K" << s.keys << " V" << s.values << " gates "
             << static_cast<int>(s.gates) << " of " << s.strength;
}

/// q, k, v, log decay (undefined without), state; q and k are views of wider rows.
std::vector<Tensor> make_inputs(const Shape& s) {
  const Tensor qk = torch::randn({s.batch, s.tokens, s.heads, 2 * s.keys + 3});
  std::vector<int64_t> gate_shape = {s.batch, s.tokens, s.heads};
  if (s.gates == Gates::kChannel) gate_shape.push_back(s.keys);
  return {qk.narrow(-1, 0, s.keys), ops::l2_norm(qk.narrow(-1, s.keys + 2, s.keys), 1e-6),
          torch::randn({s.batch, s.tokens, s.heads, s.values}),
          s.gates == Gates::kNone ? Tensor() : -torch::rand(gate_shape) * s.strength,
          torch::randn({s.batch, s.heads, s.keys, s.values})};
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
  const auto gate = in[3].defined() ? std::make_optional(in[3]) : std::nullopt;
  const auto [o, state] = ops::gated_linear_attention(in[0], in[1], in[2], gate, 0.5, in[4], cu_seqlens);
  torch::manual_seed(3);
  const auto weighted = [](const Tensor& t) { return (t * torch::randn(t.sizes()).to(t)).sum(); };
  auto all = torch::autograd::grad({weighted(o) + weighted(state)}, leaves);
  ops::set_fused_enabled(true);
  all.push_back(o.detach());
  all.push_back(state.detach());
  return all;
}

class FusedGla : public testing::TestWithParam<Shape> {};

TEST_P(FusedGla, EqualsTheReferenceOnEveryTarget) {
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

TEST_P(FusedGla, FewTokensWithoutGradientsGoByTheRecurrence) {
  torch::NoGradGuard no_grad;
  torch::manual_seed(2);
  Shape shape = GetParam();
  for (const int64_t tokens : {1, 3, 7}) {
    shape.tokens = tokens;
    const auto in = make_inputs(shape);
    const auto gate = in[3].defined() ? std::make_optional(in[3]) : std::nullopt;
    ops::set_fused_enabled(false);
    const auto [want, want_state] = ops::gated_linear_attention(in[0], in[1], in[2], gate, 0.5, in[4]);
    ops::set_fused_enabled(true);
    for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
      hwy::SetSupportedTargetsForTest(target);
      const auto [o, state] = ops::gated_linear_attention(in[0], in[1], in[2], gate, 0.5, in[4]);
      hwy::SetSupportedTargetsForTest(0);
      expect_near(o, want, 1e-5, hwy::TargetName(target));
      expect_near(state, want_state, 1e-5, hwy::TargetName(target));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, FusedGla,
    testing::Values(Shape{2, 130, 3, 16, 32, Gates::kChannel, 0.1}, Shape{1, 64, 2, 64, 64, Gates::kChannel, 1},
                    Shape{1, 200, 2, 24, 40, Gates::kChannel, 6}, Shape{2, 77, 1, 5, 7, Gates::kChannel, 30},
                    Shape{1, 90, 2, 17, 33, Gates::kChannel, 300}, Shape{2, 1, 2, 8, 8, Gates::kChannel, 1},
                    Shape{2, 130, 2, 32, 48, Gates::kHead, 0.2}, Shape{1, 129, 3, 20, 9, Gates::kHead, 50},
                    Shape{1, 15, 1, 1, 1, Gates::kHead, 300}, Shape{2, 100, 2, 64, 16, Gates::kNone, 0},
                    Shape{1, 17, 1, 3, 65, Gates::kNone, 0}));

TEST(GatedLinearAttentionKernel, PackedSequencesEqualEachOneAlone) {
  // of several chunks, of none, of one token and of fewer than the recurrence takes
  const Tensor cu_seqlens = torch::tensor({0, 130, 130, 131, 136, 200}, torch::kInt32);
  for (const Gates gates : {Gates::kNone, Gates::kHead, Gates::kChannel}) {
    torch::manual_seed(6);
    auto in = make_inputs({1, 200, 3, 20, 12, gates, 2});
    in[4] = torch::randn({5, 3, 20, 12});
    const auto alone = [&](int64_t s) {
      const int64_t begin = cu_seqlens[s].item<int64_t>(), size = cu_seqlens[s + 1].item<int64_t>() - begin;
      const auto part = [&](const Tensor& t) { return t.narrow(1, begin, size); };
      const auto gate = in[3].defined() ? std::make_optional(part(in[3])) : std::nullopt;
      const Tensor state = in[4].narrow(0, s, 1);
      return size == 0 ? std::tuple(part(in[2]), state)
                       : ops::gated_linear_attention(part(in[0]), part(in[1]), part(in[2]), gate, 0.5, state);
    };
    std::vector<Tensor> os, states;
    for (int64_t s = 0; s < 5; ++s) {
      const auto [o, state] = alone(s);
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
  }
}

TEST(GatedLinearAttentionKernel, ReadsAndWritesBfloat16AndSumsInFloat32) {
  const Tensor cu_seqlens = torch::tensor({0, 70, 73, 73, 100});
  for (const Gates gates : {Gates::kNone, Gates::kHead, Gates::kChannel}) {
    torch::manual_seed(8);
    auto in = make_inputs({1, 100, 2, 20, 40, gates, 2});
    in[4] = torch::randn({4, 2, 20, 40});
    for (size_t i = 0; i < 4; ++i) {
      if (in[i].defined()) in[i] = in[i].to(torch::kBFloat16);
    }
    const auto want = results(in_float64(in), false, cu_seqlens);
    for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
      hwy::SetSupportedTargetsForTest(target);
      const auto got = results(in, true, cu_seqlens);
      hwy::SetSupportedTargetsForTest(0);
      expect_all_near(got, want, 0.005, hwy::TargetName(target));  // one rounding to 8 bits
      for (const size_t i : {0, 1, 2}) EXPECT_EQ(got[i].scalar_type(), torch::kBFloat16);
      EXPECT_EQ(got[got.size() - 2].scalar_type(), torch::kBFloat16);
      expect_near(got.back(), want.back(), 1e-5, "the state is not rounded");
      const torch::NoGradGuard no_grad;  // short rows by the recurrence, beside long ones
      const auto gate = in[3].defined() ? std::make_optional(in[3]) : std::nullopt;
      const auto [o, state] = ops::gated_linear_attention(in[0], in[1], in[2], gate, 0.5, in[4], cu_seqlens);
      expect_near(o, want[want.size() - 2], 0.005, "outputs without gradients");
      expect_near(state, want.back(), 1e-5, "state without gradients");
    }
  }
}

TEST(GatedLinearAttentionKernel, RowsThatBeginWithNothingEqualThoseThatBeginWithZeros) {
  for (const Gates gates : {Gates::kNone, Gates::kHead, Gates::kChannel}) {
    torch::manual_seed(9);
    const auto in = make_inputs({1, 150, 2, 16, 20, gates, 2});
    const Tensor cu_seqlens = torch::tensor({0, 130, 130, 131, 150}), zeros = torch::zeros({4, 2, 16, 20});
    const auto run = [&](const std::optional<Tensor>& state, bool with_state) {
      std::vector<Tensor> leaves;
      for (size_t i = 0; i < 4; ++i) {
        if (in[i].defined()) leaves.push_back(in[i].detach().requires_grad_(true));
      }
      const auto gate = in[3].defined() ? std::make_optional(leaves[3]) : std::nullopt;
      const auto [o, last] = ops::gated_linear_attention(leaves[0], leaves[1], leaves[2], gate, 0.5, state, cu_seqlens);
      auto all = torch::autograd::grad({o.square().sum() + (with_state ? last.square().sum() : o.sum())}, leaves);
      all.push_back(o.detach());
      all.push_back(last.detach());
      return all;
    };
    for (const bool with_state : {true, false}) {
      const auto want = run(zeros, with_state), got = run({}, with_state);
      for (size_t i = 0; i < want.size(); ++i) EXPECT_TRUE(got[i].equal(want[i])) << i;
    }
  }
}

TEST(GatedLinearAttentionKernel, FewPackedTokensWithoutGradientsGoByTheRecurrence) {
  const torch::NoGradGuard no_grad;
  torch::manual_seed(7);
  auto in = make_inputs({1, 9, 2, 8, 12, Gates::kChannel, 2});
  in[4] = torch::randn({3, 2, 8, 12});
  const Tensor cu_seqlens = torch::tensor({0, 5, 6, 9});
  const auto run = [&](bool fused) {
    ops::set_fused_enabled(fused);
    const auto [o, state] = ops::gated_linear_attention(in[0], in[1], in[2], in[3], 0.5, in[4], cu_seqlens);
    ops::set_fused_enabled(true);
    return std::vector<Tensor>{o, state};
  };
  expect_all_near(run(true), run(false), 1e-5, "few tokens");
}

TEST(GatedLinearAttentionKernel, TheNormaliserAndSecondDerivativesArePackedToo) {
  torch::manual_seed(8);
  const auto in = make_inputs({1, 30, 2, 5, 4, Gates::kHead, 1});
  const Tensor cu_seqlens = torch::tensor({0, 12, 30}), k = in[1].abs(), q = in[0].abs();
  const auto [o, S, z] = ops::normalized_gated_linear_attention(q, k, in[2], in[3], 1, 1e-6, {}, {}, cu_seqlens);
  const auto part = [](const Tensor& t) { return t.narrow(1, 12, 18); };
  const auto [o1, S1, z1] =
      ops::normalized_gated_linear_attention(part(q), part(k), part(in[2]), part(in[3]), 1, 1e-6, {}, {});
  expect_near(part(o), o1, 1e-5, "outputs");
  expect_near(S.narrow(0, 1, 1), S1, 1e-5, "states");
  expect_near(z.narrow(0, 1, 1), z1, 1e-5, "normalisers");
  const auto second = [&](bool fused) {
    std::vector<Tensor> leaves;
    for (size_t i = 0; i < 4; ++i) leaves.push_back(in[i].detach().requires_grad_(true));
    ops::set_fused_enabled(fused);
    const auto [y, state] = ops::gated_linear_attention(leaves[0], leaves[1], leaves[2], leaves[3], 1, {}, cu_seqlens);
    const auto first = torch::autograd::grad({y.pow(2).sum() + state.pow(2).sum()}, leaves, {}, true, true);
    Tensor norm = torch::zeros({});
    for (const Tensor& g : first) norm = norm + g.pow(2).sum();
    ops::set_fused_enabled(true);
    return torch::autograd::grad({norm}, leaves);
  };
  expect_all_near(second(true), second(false), 1e-4, "second derivatives");
}

TEST(GatedLinearAttentionKernel, RefusesOffsetsThatDoNotFit) {
  const auto in = make_inputs({1, 30, 2, 5, 4, Gates::kHead, 1});
  for (const Tensor& wrong : {torch::tensor({0, 29}), torch::tensor({0, 40, 30}), torch::tensor({0.0, 30.0}),
                              torch::zeros({0}, torch::kInt64)}) {
    EXPECT_THROW(ops::gated_linear_attention(in[0], in[1], in[2], in[3], 1, {}, wrong), UsageError);
  }
  const Tensor two = torch::tensor({0, 10, 30});
  EXPECT_THROW(ops::gated_linear_attention(in[0], in[1], in[2], in[3], 1, in[4], two), UsageError);
  const auto batch = make_inputs({2, 30, 2, 5, 4, Gates::kHead, 1});
  EXPECT_THROW(ops::gated_linear_attention(batch[0], batch[1], batch[2], batch[3], 1, {}, two), UsageError);
}

TEST(GatedLinearAttentionKernel, BroadcastHeadsNeedNoCopies) {
  torch::manual_seed(4);
  auto in = make_inputs({2, 70, 4, 16, 16, Gates::kHead, 1});
  for (const size_t i : {0, 1}) in[i] = in[i].narrow(2, 0, 1).expand({2, 70, 4, 16});
  expect_all_near(results(in, true), results(in_float64(in), false), 1e-5, "shared keys");
}

TEST(GatedLinearAttentionKernel, DoesNotDependOnTheNumberOfThreads) {
  torch::manual_seed(5);
  const auto in = make_inputs({2, 300, 3, 32, 32, Gates::kChannel, 2});
  const int threads = at::get_num_threads();
  torch::set_num_threads(1);
  const auto one = results(in, true);
  torch::set_num_threads(2);
  const auto two = results(in, true);
  torch::set_num_threads(threads);
  for (size_t i = 0; i < one.size(); ++i) EXPECT_TRUE(one[i].equal(two[i])) << i;
}

TEST(GatedLinearAttentionKernel, ANanInTheGatesShows) {
  auto in = make_inputs({1, 40, 1, 8, 8, Gates::kChannel, 1});
  in[3][0][20][0][3] = std::numeric_limits<float>::quiet_NaN();
  const auto [o, state] = ops::gated_linear_attention(in[0], in[1], in[2], in[3], 1, in[4]);
  EXPECT_TRUE(o.narrow(1, 20, 20).isnan().all().item<bool>());
  EXPECT_TRUE(o.narrow(1, 0, 16).isfinite().all().item<bool>()) << "tokens of an earlier block";
}

TEST(GatedLinearAttentionKernel, SecondDerivativesGoThroughTheReference) {
  torch::manual_seed(6);
  const auto in = make_inputs({1, 10, 1, 4, 3, Gates::kChannel, 1});
  const auto second = [&](bool fused) {
    ops::set_fused_enabled(fused);
    const Tensor k = in[1].detach().requires_grad_(true), g = in[3].detach().requires_grad_(true);
    const Tensor o = std::get<0>(ops::gated_linear_attention(in[0], k, in[2], g, 1, {}));
    const auto first = torch::autograd::grad({o.square().sum()}, {k, g}, {}, true, /*create_graph=*/true);
    const auto all = torch::autograd::grad({first[0].square().sum() + first[1].square().sum()}, {k, g});
    ops::set_fused_enabled(true);
    return all;
  };
  expect_all_near(second(true), second(false), 1e-4, "second derivatives");
}

}  // namespace
}  // namespace seqloom
