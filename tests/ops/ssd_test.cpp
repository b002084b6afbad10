// ssd against its definition, token by token in float64.
#include "ops/ssd.h"

#include <gtest/gtest.h>

#include <limits>

#include "base/error.h"
#include "support/compare.h"

namespace seqloom {
namespace {

using torch::Tensor;

struct Inputs {
  Tensor x, dt, A, B, C, D, z, state;
  ops::StepRule rule;
};

Inputs make_inputs(int64_t tokens, int64_t groups, double strength, torch::ScalarType type = torch::kFloat32) {
  const int64_t batch = 2, heads = 4, width = 3, states = 5;
  const auto options = torch::TensorOptions().dtype(type);
  Inputs in;
  in.x = torch::randn({batch, tokens, heads, width}, options);
  in.dt = torch::randn({batch, tokens, heads}, options) * 2;
  in.A = -torch::rand({heads}, options) * strength;
  in.B = torch::randn({batch, tokens, groups, states}, options);
  in.C = torch::randn({batch, tokens, groups, states}, options);
  in.D = torch::randn({heads, width}, options);
  in.z = torch::randn({batch, tokens, heads, width}, options);
  in.state = torch::randn({batch, heads, width, states}, options);
  in.rule = {torch::randn({heads}, options), true};
  return in;
}

std::tuple<Tensor, Tensor> run(const Inputs& in, int64_t chunk = 64, const std::optional<Tensor>& cu_seqlens = {}) {
  return ops::ssd(in.x, in.dt, in.A, in.B, in.C, in.D, in.z, in.rule, in.state, cu_seqlens, chunk);
}

/// The recurrence as the paper writes it.
std::pair<Tensor, Tensor> by_token(const Inputs& in) {
  const auto wide = [](const Tensor& t) { return t.to(torch::kFloat64); };
  const int64_t share = in.x.size(2) / in.B.size(2);
  Tensor dt = torch::softplus(wide(in.dt) + wide(*in.rule.bias));
  if (in.rule.high < std::numeric_limits<double>::infinity()) dt = dt.clamp(in.rule.low, in.rule.high);
  Tensor h = wide(in.state);
  std::vector<Tensor> outputs;
  for (int64_t t = 0; t < in.x.size(1); ++t) {
    const Tensor step = dt.select(1, t).unsqueeze(-1);  // [B, H, 1]
    const auto map = [&](const Tensor& m) { return wide(m).select(1, t).repeat_interleave(share, 1).unsqueeze(-2); };
    h = (step * wide(in.A).unsqueeze(-1)).exp().unsqueeze(-1) * h +
        (step * wide(in.x).select(1, t)).unsqueeze(-1) * map(in.B);
    const Tensor y = (h * map(in.C)).sum(-1) + wide(in.D) * wide(in.x).select(1, t);
    outputs.push_back(y * torch::silu(wide(in.z).select(1, t)));
  }
  return {torch::stack(outputs, 1), h};
}

TEST(Ssd, PackedSequencesEqualEachOneAlone) {
  torch::manual_seed(2);
  Inputs in = make_inputs(70, 2, 1);
  for (Tensor* t : {&in.x, &in.dt, &in.B, &in.C, &in.z}) *t = t->narrow(0, 0, 1);
  in.state = torch::randn({3, 4, 3, 5});
  const Tensor cu_seqlens = torch::tensor({0, 1, 40, 70});
  const auto [y, state] = run(in, 16, cu_seqlens);
  for (int64_t s = 0; s < 3; ++s) {
    const int64_t begin = cu_seqlens[s].item<int64_t>(), size = cu_seqlens[s + 1].item<int64_t>() - begin;
    Inputs part = in;
    for (Tensor* t : {&part.x, &part.dt, &part.B, &part.C, &part.z}) *t = t->narrow(1, begin, size);
    part.state = in.state.narrow(0, s, 1);
    const auto [want, last] = run(part);
    expect_near(y.narrow(1, begin, size), want, 1e-5, "outputs");
    expect_near(state.narrow(0, s, 1), last, 1e-5, "state");
  }
  EXPECT_THROW(run(in, 16, torch::tensor({0, 40, 69, 71})), UsageError);
  EXPECT_THROW(run(in, 16, torch::tensor({0, 70})), UsageError);  // a state for each of three
}

TEST(Ssd, EqualsItsRecurrenceForAnyChunkGroupsAndStrengthOfDecay) {
  torch::manual_seed(1);
  for (const int64_t tokens : {1, 13, 40, 200}) {
    for (const int64_t groups : {1, 2, 4}) {
      for (const double strength : {0.0, 1.0, 300.0}) {
        const Inputs in = make_inputs(tokens, groups, strength);
        const auto [want, want_state] = by_token(in);
        for (const int64_t chunk : {1, 5, 64}) {
          const auto [y, state] = run(in, chunk);
          expect_near(y, want, 2e-5, fmt::format("T {} G {} decay {} chunk {}", tokens, groups, strength, chunk));
          expect_near(state, want_state, 2e-5, "state");
        }
      }
    }
  }
}

TEST(Ssd, ClampsStepSizesAfterSoftplusAndNeverBelowZero) {
  torch::manual_seed(2);
  Inputs in = make_inputs(20, 1, 1);
  in.rule.low = 0.05;
  in.rule.high = 0.6;
  expect_near(std::get<0>(run(in)), by_token(in).first, 2e-5, "limits");
  const Tensor raw = torch::linspace(-2, 2, 9);
  EXPECT_TRUE(ops::step_sizes(raw, {}).equal(raw.clamp_min(0)));
  const Tensor limited = ops::step_sizes(raw, {{}, false, 0.1, 1.5});
  EXPECT_FLOAT_EQ(limited.min().item<float>(), 0.1);
  EXPECT_FLOAT_EQ(limited.max().item<float>(), 1.5);
}

TEST(Ssd, TheMatrixAppliesAsTheScanDoes) {
  torch::manual_seed(3);
  const Inputs in = make_inputs(33, 2, 20);
  const Tensor dt = ops::step_sizes(in.dt, in.rule);
  const auto [y, state] = ops::ssd(in.x, dt, in.A, in.B, in.C, {}, {}, {}, {});
  const Tensor mixed = torch::matmul(ops::ssd_matrix(dt, in.A, in.B, in.C), in.x.transpose(1, 2));
  expect_near(mixed.transpose(1, 2), y, 2e-5, "matrix");
}

TEST(Ssd, TakesBfloat16AndKeepsAFloat32State) {
  torch::manual_seed(4);
  Inputs in = make_inputs(30, 1, 1);
  const auto [exact, exact_state] = run(in);
  for (Tensor* t : {&in.x, &in.dt, &in.B, &in.C, &in.z}) *t = t->to(torch::kBFloat16);
  const auto [y, state] = run(in);
  EXPECT_EQ(y.scalar_type(), torch::kBFloat16);
  EXPECT_EQ(state.scalar_type(), torch::kFloat32);
  expect_near(y.to(torch::kFloat32), exact, 0.03, "bfloat16");
}

TEST(Ssd, RefusesWrongShapesAndRates) {
  const Inputs good = make_inputs(6, 2, 1);
  const auto refused = [&](auto spoil) {
    Inputs in = good;
    spoil(in);
    EXPECT_THROW(run(in), UsageError);
  };
  refused([](Inputs& in) { in.x = torch::randn({2, 0, 4, 3}); });
  refused([](Inputs& in) { in.dt = torch::randn({2, 6, 3}); });
  refused([](Inputs& in) { in.A = torch::ones({4}); });
  refused([](Inputs& in) { in.B = in.C = torch::randn({2, 6, 3, 5}); });
  refused([](Inputs& in) { in.C = torch::randn({2, 6, 2, 4}); });
  refused([](Inputs& in) { in.D = torch::randn({3}); });
  refused([](Inputs& in) { in.z = torch::randn({2, 6, 4, 2}); });
  refused([](Inputs& in) { in.state = torch::randn({2, 4, 5, 3}); });
  refused([](Inputs& in) { in.rule.bias = torch::randn({5}); });
  refused([](Inputs& in) { in.rule.low = 2, in.rule.high = 1; });
  refused([](Inputs& in) { in.rule.low = -1; });
}

TEST(Segsum, SumsTermsAndKeepsTheSmallBesideTheLarge) {
  const Tensor x = torch::tensor({0.5, -1e8, 0.001, -0.002, -std::numeric_limits<double>::infinity(), 1.0});
  const Tensor y = ops::segsum(x.to(torch::kFloat32));
  for (int64_t i = 0; i < 6; ++i) {
    for (int64_t j = 0; j < 6; ++j) {
      const double want = j > i   ? -std::numeric_limits<double>::infinity()
                          : i > j ? x.narrow(0, j + 1, i - j).sum().item<double>()
                                  : 0;
      EXPECT_FLOAT_EQ(y[i][j].item<float>(), static_cast<float>(want)) << i << " " << j;
    }
  }
  EXPECT_EQ(ops::segsum(torch::randn({2, 3, 1})).sizes(), torch::IntArrayRef({2, 3, 1, 1}));
  EXPECT_THROW(ops::segsum(torch::randn({2, 0})), UsageError);
}

TEST(Segsum, GradientIsThatOfTheSums) {
  torch::manual_seed(5);
  const Tensor x = torch::randn({2, 7}, torch::kFloat64).requires_grad_(true);
  const Tensor weight = torch::randn({2, 7, 7}, torch::kFloat64);
  const Tensor got = torch::autograd::grad({(ops::segsum(x).exp() * weight).sum()}, {x})[0];
  for (int64_t k = 0; k < 7; ++k) {
    const torch::NoGradGuard no_grad;
    Tensor more = x.detach().clone(), less = x.detach().clone();
    more.select(1, k) += 1e-6;
    less.select(1, k) -= 1e-6;
    const Tensor difference = ((ops::segsum(more).exp() - ops::segsum(less).exp()) * weight).sum({1, 2}) / 2e-6;
    expect_near(got.select(1, k), difference, 1e-6, "segsum");
  }
}

}  // namespace
}  // namespace seqloom
