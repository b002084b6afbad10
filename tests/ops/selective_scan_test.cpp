#include "ops/selective_scan.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cstring>

#include "base/error.h"
#include "support/fused_op.h"

namespace seqloom {
namespace {

using torch::Tensor;

struct Shape {
  int64_t batch, channels, tokens, states, groups;
  bool constant_b, constant_c, extras, softplus, state;
};

std::ostream& operator<<(std::ostream& out, const Shape& s) {
  return out << "B" << s.batch << " E" << s.channels << " T" << s.tokens << " N" << s.states << " G" << s.groups;
}

/// The op's inputs in order: u, delta, A, B, C, D, z, bias, state; absent ones undefined.
std::vector<Tensor> make_inputs(const Shape& s) {
  const auto token_major = [&](int64_t width) { return torch::randn({s.batch, s.tokens, width}).transpose(1, 2); };
  const auto map = [&](bool constant) {
    return constant ? torch::randn({s.channels, s.states}) : torch::randn({s.batch, s.groups, s.states, s.tokens});
  };
  const Tensor delta = s.softplus ? token_major(s.channels) * 3 : token_major(s.channels).abs() * 0.5;
  return {token_major(s.channels),
          delta,
          -torch::rand({s.channels, s.states}) * 4,
          map(s.constant_b),
          map(s.constant_c),
          s.extras ? torch::randn({s.channels}) : Tensor(),
          s.extras ? token_major(s.channels) : Tensor(),
          s.extras ? torch::randn({s.channels}) : Tensor(),
          s.state ? torch::randn({s.batch, s.channels, s.states}) : Tensor()};
}

std::tuple<Tensor, Tensor> run(const std::vector<Tensor>& in, bool softplus,
                               const std::optional<Tensor>& cu_seqlens = {}) {
  const auto optional = [](const Tensor& t) { return t.defined() ? std::make_optional(t) : std::nullopt; };
  return ops::selective_scan(in[0], in[1], in[2], in[3], in[4], optional(in[5]), optional(in[6]), optional(in[7]),
                             softplus, optional(in[8]), cu_seqlens);
}

/// Outputs and all gradients, of a weighted sum of outputs and final state.
std::vector<Tensor> results(const std::vector<Tensor>& inputs, bool softplus, bool fused,
                            const std::optional<Tensor>& cu_seqlens = {}) {
  std::vector<Tensor> leaves, in;
  for (const auto& t : inputs) {
    in.push_back(t.defined() ? t.detach().clone().requires_grad_(true) : Tensor());
    if (t.defined()) leaves.push_back(in.back());
  }
  ops::set_fused_enabled(fused);
  const auto [y, state] = run(in, softplus, cu_seqlens);
  torch::manual_seed(3);
  const Tensor loss = (y * torch::randn(y.sizes())).sum() + (state * torch::randn(state.sizes())).sum();
  auto all = torch::autograd::grad({loss}, leaves);
  ops::set_fused_enabled(true);
  all.push_back(y.detach());
  all.push_back(state.detach());
  return all;
}

class FusedScan : public testing::TestWithParam<Shape> {};

TEST_P(FusedScan, EqualsTheReferenceOnEveryTarget) {
  torch::manual_seed(1);
  const auto inputs = make_inputs(GetParam());
  const auto want = results(inputs, GetParam().softplus, false);
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    hwy::SetSupportedTargetsForTest(target);
    const auto got = results(inputs, GetParam().softplus, true);
    hwy::SetSupportedTargetsForTest(0);
    for (size_t i = 0; i < want.size(); ++i) expect_near(got[i], want[i], 2e-4, hwy::TargetName(target));
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, FusedScan,
                         testing::Values(Shape{2, 16, 64, 16, 1, false, false, true, true, true},
                                         Shape{1, 37, 45, 5, 1, false, false, true, true, false},
                                         Shape{3, 8, 1, 4, 1, false, false, true, true, true},
                                         Shape{2, 12, 33, 3, 2, false, false, false, false, true},
                                         Shape{1, 40, 70, 7, 4, false, false, true, true, true},
                                         Shape{2, 9, 31, 2, 1, true, true, false, false, false},
                                         Shape{2, 20, 40, 6, 1, true, false, true, true, true},
                                         Shape{1, 300, 33, 16, 1, false, true, true, true, true}));

TEST(SelectiveScan, GroupsOfBAndCMayDiffer) {
  torch::manual_seed(2);
  auto inputs = make_inputs({2, 12, 20, 4, 3, false, false, true, true, false});
  inputs[4] = torch::randn({2, 4, 20});
  const auto want = results(inputs, true, false), got = results(inputs, true, true);
  for (size_t i = 0; i < want.size(); ++i) expect_near(got[i], want[i], 2e-4, "differing groups");
}

TEST(SelectiveScan, SplitEqualsWholeThroughTheState) {
  torch::manual_seed(4);
  const auto in = make_inputs({2, 24, 100, 8, 1, false, false, true, true, true});
  const auto [y, state] = run(in, true);
  Tensor carried = in[8];
  std::vector<Tensor> parts;
  int64_t begin = 0;
  for (const int64_t size : {1, 31, 32, 36}) {
    auto part = in;
    for (const size_t i : {0, 1, 6}) part[i] = in[i].narrow(2, begin, size);
    for (const size_t i : {3, 4}) part[i] = in[i].narrow(3, begin, size);
    part[8] = carried;
    const auto [some, after] = run(part, true);
    parts.push_back(some);
    carried = after;
    begin += size;
  }
  expect_near(torch::cat(parts, 2), y, 1e-5, "outputs");
  expect_near(carried, state, 1e-5, "state");
}

TEST(SelectiveScan, SurvivesStrongDecayAndBothTailsOfSoftplus) {
  torch::manual_seed(5);
  auto in = make_inputs({1, 16, 50, 4, 1, false, false, true, true, true});
  in[1] = torch::linspace(-60, 60, 16 * 50).view({1, 50, 16}).transpose(1, 2);
  in[2] = in[2] * 50;
  const auto want = results(in, true, false), got = results(in, true, true);
  for (size_t i = 0; i < want.size(); ++i) {
    EXPECT_TRUE(got[i].isfinite().all().item<bool>());
    expect_near(got[i], want[i], 3e-4, "extremes");
  }
}

TEST(SelectiveScan, ANaNReachesTheOutputFromEveryInputAndStaysInItsChannel) {
  torch::manual_seed(7);
  const auto good = make_inputs({1, 20, 40, 3, 1, false, false, true, true, true});
  for (const size_t index : {0, 1, 2, 5, 6, 7, 8}) {
    SCOPED_TRACE(index);
    auto in = good;
    in[index] = good[index].clone();
    const bool of_tokens = index == 0 || index == 1 || index == 6;
    auto place = of_tokens    ? in[index].select(0, 0).select(0, 17).select(0, 30)
                 : index == 8 ? in[index].select(0, 0).select(0, 17).select(0, 2)
                 : index == 2 ? in[index].select(0, 17).select(0, 2)
                              : in[index].select(0, 17);
    const int32_t nan_with_payload = 0x7fc00001;
    std::memcpy(place.mutable_data_ptr<float>(), &nan_with_payload, sizeof nan_with_payload);
    on_every_target([&] {
      const Tensor bad = std::get<0>(run(in, true)).isnan().squeeze(0);  // [E, T]
      EXPECT_TRUE(bad[17][index == 6 || of_tokens ? 30 : 0].item<bool>());
      EXPECT_EQ(bad.sum().item<int64_t>(), bad[17].sum().item<int64_t>());
      if (of_tokens) {
        EXPECT_FALSE(bad[17].narrow(0, 0, 30).any().item<bool>());
      }
    });
  }
}

TEST(SelectiveScan, StrongDecayForgetsAllAndGrowthOverflowsAsTheReferenceDoes) {
  auto in = make_inputs({1, 16, 40, 2, 1, false, false, false, false, true});
  in[1] = torch::ones({1, 16, 40});
  in[2] = torch::full({16, 2}, -1000.0);
  in[0] = torch::zeros({1, 16, 40});
  in[8] = torch::full({1, 16, 2}, 1e38);
  on_every_target([&] { EXPECT_EQ(std::get<1>(run(in, false)).abs().max().item<float>(), 0); });
  in[2] = torch::full({16, 2}, 1000.0);
  on_every_target([&] { EXPECT_TRUE(std::get<1>(run(in, false)).isinf().all().item<bool>()); });
}

TEST(SelectiveScan, TheSoftplusGradientKeepsItsPrecisionFarBelowZero) {
  torch::manual_seed(8);
  auto in = make_inputs({1, 16, 8, 2, 1, false, false, false, true, false});
  in[1] = torch::linspace(-60, -16, 16 * 8).view({1, 16, 8});
  auto wide = in;
  for (Tensor& t : wide) t = t.defined() ? t.to(torch::kFloat64) : t;
  const Tensor want = results(wide, true, false)[1], got = results(in, true, true)[1];
  EXPECT_LT(((got - want) / want).abs().max().item<double>(), 1e-4);
}

TEST(SelectiveScan, SecondDerivativesAreThoseOfTheReference) {
  torch::manual_seed(9);
  const auto second = [](bool fused) {
    torch::manual_seed(10);
    auto in = make_inputs({2, 5, 7, 3, 1, false, false, true, true, true});
    std::vector<Tensor> leaves;
    for (Tensor& t : in) leaves.push_back(t.detach().clone().requires_grad_(true));
    ops::set_fused_enabled(fused);
    const auto [y, state] = run(leaves, true);
    const auto first = torch::autograd::grad({y.pow(2).sum() + state.sum()}, leaves, {}, true, true);
    Tensor norm = torch::zeros({});
    for (const Tensor& g : first) norm = norm + g.pow(2).sum();
    ops::set_fused_enabled(true);
    return torch::autograd::grad({norm}, leaves);
  };
  const auto want = second(false), got = second(true);
  for (size_t i = 0; i < want.size(); ++i) expect_near(got[i], want[i], 1e-4, "second derivative");
}

TEST(SelectiveScan, TakesBfloat16AndKeepsAFloat32State) {
  torch::manual_seed(6);
  auto in = make_inputs({2, 16, 40, 8, 1, false, false, true, true, false});
  const auto [exact, exact_state] = run(in, true);
  for (const size_t i : {0, 1, 3, 4, 6}) in[i] = in[i].to(torch::kBFloat16);
  const auto [y, state] = run(in, true);
  EXPECT_EQ(y.scalar_type(), torch::kBFloat16);
  EXPECT_EQ(state.scalar_type(), torch::kFloat32);
  expect_near(y.to(torch::kFloat32), exact, 0.05, "bfloat16");
}

TEST(SelectiveScan, Bfloat16IsReadAsItIsOnEveryTarget) {
  torch::manual_seed(11);
  for (const Shape& shape : {Shape{2, 37, 45, 5, 1, false, false, true, true, true},
                             Shape{1, 16, 33, 4, 2, false, true, false, true, false}}) {
    auto in = make_inputs(shape);
    for (const size_t i : {0, 1, 6}) in[i] = in[i].defined() ? in[i].to(torch::kBFloat16) : in[i];
    const auto want = results(in, true, false);
    on_every_target([&] {
      const auto got = results(in, true, true);
      for (size_t i = 0; i < want.size(); ++i) {
        EXPECT_EQ(got[i].scalar_type(), want[i].scalar_type());
        expect_near(got[i], want[i], 0.02, std::to_string(i));
      }
    });
  }
}

TEST(SelectiveScan, RowsMayLieFurtherApartThanTheirWidth) {
  torch::manual_seed(12);
  const auto in = make_inputs({2, 24, 40, 4, 1, false, false, true, true, true});
  auto parts = in;
  const Tensor both = torch::cat({in[0], in[6]}, 1).transpose(1, 2).contiguous().transpose(1, 2);
  parts[0] = both.narrow(1, 0, 24);
  parts[6] = both.narrow(1, 24, 24);
  EXPECT_TRUE(torch::equal(std::get<0>(run(parts, true)), std::get<0>(run(in, true))));
}

TEST(SelectiveScan, PackedSequencesEqualEachOneAlone) {
  torch::manual_seed(13);
  auto in = make_inputs({1, 20, 120, 3, 2, false, false, true, true, false});
  in[8] = torch::randn({4, 20, 3});
  const Tensor cu_seqlens = torch::tensor({0, 33, 33, 40, 120}, torch::kInt32);
  std::vector<Tensor> ys, states;
  for (int64_t s = 0; s < 4; ++s) {
    const int64_t begin = cu_seqlens[s].item<int64_t>(), size = cu_seqlens[s + 1].item<int64_t>() - begin;
    auto part = in;
    for (const size_t i : {0, 1, 3, 4, 6}) part[i] = in[i].narrow(-1, begin, size);
    part[8] = in[8].narrow(0, s, 1);
    const auto [y, state] = size > 0 ? run(part, true) : std::make_tuple(part[0], part[8]);
    ys.push_back(y);
    states.push_back(state);
  }
  const auto [y, state] = run(in, true, cu_seqlens);
  expect_near(y, torch::cat(ys, 2), 1e-6, "outputs");
  expect_near(state, torch::cat(states), 1e-6, "states");
  const auto want = results(in, true, false, cu_seqlens);
  on_every_target([&] {
    const auto got = results(in, true, true, cu_seqlens);
    for (size_t i = 0; i < want.size(); ++i) expect_near(got[i], want[i], 2e-4, std::to_string(i));
  });
  for (const Tensor& wrong : {torch::tensor({0, 119}), torch::tensor({0, 130, 120}), torch::tensor({0.0, 120.0}),
                              torch::zeros({0}, torch::kInt64)}) {
    EXPECT_THROW(run(in, true, wrong), UsageError);
  }
}

TEST(SelectiveScan, RefusesWrongShapes) {
  const auto good = make_inputs({2, 12, 8, 4, 1, false, false, true, true, true});
  const auto refused = [&](size_t index, const Tensor& bad) {
    auto in = good;
    in[index] = bad;
    EXPECT_THROW(run(in, true), UsageError) << "input " << index;
  };
  refused(0, torch::randn({2, 12, 0}));
  refused(0, torch::ones({2, 12, 8}, torch::kInt64));
  refused(7, torch::ones({12}, torch::kInt64));
  refused(8, torch::zeros({2, 12, 4}, torch::kMeta));
  refused(1, torch::randn({2, 12, 7}));
  refused(2, torch::randn({11, 4}));
  refused(3, torch::randn({2, 5, 4, 8}));  // 5 groups do not divide 12 channels
  refused(4, torch::randn({2, 3, 8}));
  refused(5, torch::randn({11}));
  refused(8, torch::randn({1, 12, 4}));
}

}  // namespace
}  // namespace seqloom
