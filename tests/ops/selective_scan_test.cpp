#include "ops/selective_scan.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include "base/error.h"
#include "ops/fused.h"
#include "support/compare.h"
#include "support/gradcheck.h"

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

std::tuple<Tensor, Tensor> run(const std::vector<Tensor>& in, bool softplus) {
  const auto optional = [](const Tensor& t) { return t.defined() ? std::make_optional(t) : std::nullopt; };
  return ops::selective_scan(in[0], in[1], in[2], in[3], in[4], optional(in[5]), optional(in[6]), optional(in[7]),
                             softplus, optional(in[8]));
}

/// Outputs and all gradients, of a weighted sum of outputs and final state.
std::vector<Tensor> results(const std::vector<Tensor>& inputs, bool softplus, bool fused) {
  std::vector<Tensor> leaves, in;
  for (const auto& t : inputs) {
    in.push_back(t.defined() ? t.detach().clone().requires_grad_(true) : Tensor());
    if (t.defined()) leaves.push_back(in.back());
  }
  ops::set_fused_enabled(fused);
  const auto [y, state] = run(in, softplus);
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

TEST(SelectiveScan, FusedEqualsTheReferenceOnRandomShapes) {
  torch::manual_seed(7);
  const auto draw = [](int64_t low, int64_t high) { return torch::randint(low, high + 1, {1}).item<int64_t>(); };
  for (int64_t trial = 0; trial < 24; ++trial) {
    const int64_t groups = draw(1, 3);
    const Shape s{draw(1, 3),      groups * draw(1, 50), draw(1, 140),    draw(1, 20),     groups,
                  draw(0, 1) == 1, draw(0, 1) == 1,      draw(0, 1) == 1, draw(0, 1) == 1, draw(0, 1) == 1};
    const auto inputs = make_inputs(s);
    const auto want = results(inputs, s.softplus, false), got = results(inputs, s.softplus, true);
    for (size_t i = 0; i < want.size(); ++i) expect_near(got[i], want[i], 3e-4, testing::PrintToString(s));
  }
}

TEST(SelectiveScan, TakesAnyStrides) {
  torch::manual_seed(8);
  const auto in = make_inputs({2, 20, 40, 4, 1, false, false, true, true, true});
  auto strided = in;
  // every second element of a wider tensor, rows first
  for (auto& t : strided) t = torch::stack({t, t}, -1).select(-1, 1);
  const auto want = results(in, true, true);
  std::vector<Tensor> leaves;
  for (auto& t : strided) leaves.push_back(t = t.requires_grad_(true));
  const auto [y, state] = run(strided, true);
  torch::manual_seed(3);
  const Tensor loss = (y * torch::randn(y.sizes())).sum() + (state * torch::randn(state.sizes())).sum();
  const auto got = torch::autograd::grad({loss}, leaves);
  for (size_t i = 0; i < got.size(); ++i) expect_near(got[i], want[i], 1e-5, "strided");
}

TEST(SelectiveScan, GradientsOfTheReference) {
  torch::manual_seed(9);
  for (const Shape& s :
       {Shape{2, 4, 5, 2, 2, false, false, true, true, true}, Shape{1, 3, 4, 2, 1, true, true, true, false, true}}) {
    std::vector<Tensor> in;
    for (const Tensor& t : make_inputs(s)) in.push_back(t.to(torch::kFloat64));
    expect_gradients_match(
        [&](const std::vector<Tensor>& moved) {
          const auto [y, state] = run(moved, s.softplus);
          return torch::cat({y, state}, 2);
        },
        in);
  }
}

TEST(SelectiveScan, ComplexGradientsOfTheReference) {
  torch::manual_seed(10);
  const auto random = [](torch::IntArrayRef shape) { return torch::randn(shape, torch::kFloat64); };
  // u, delta, A as (re, im), B, C interleaved
  expect_gradients_match(
      [](const std::vector<Tensor>& in) {
        const auto [y, state] =
            ops::selective_scan(in[0], in[1], torch::view_as_complex(in[2]), in[3], in[4], {}, {}, {}, true, {});
        return torch::cat({y.flatten(), torch::view_as_real(state).flatten()});
      },
      {random({1, 3, 4}), random({1, 3, 4}), random({3, 2, 2}), random({1, 2, 8}), random({1, 2, 8})});
}

TEST(SelectiveScan, ThreadsDoNotChangeResults) {
  torch::manual_seed(11);
  const auto in = make_inputs({2, 300, 50, 8, 1, false, false, true, true, true});
  const int threads = torch::get_num_threads();
  torch::set_num_threads(1);
  const auto one = results(in, true, true);
  torch::set_num_threads(3);
  const auto three = results(in, true, true);
  torch::set_num_threads(threads);
  for (size_t i = 0; i < one.size(); ++i) expect_near(three[i], one[i], 1e-6, "three threads");
}

TEST(SelectiveScan, NaNInAnyInputReachesTheOutput) {
  torch::manual_seed(12);
  const auto good = make_inputs({1, 20, 12, 3, 1, false, false, true, true, true});
  for (size_t i = 0; i < good.size(); ++i) {
    auto in = good;
    in[i] = good[i].clone();
    in[i].view({-1})[0] = std::numeric_limits<float>::quiet_NaN();
    for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
      hwy::SetSupportedTargetsForTest(target);
      EXPECT_TRUE(std::get<0>(run(in, true)).isnan().any().item<bool>())
          << "input " << i << " " << hwy::TargetName(target);
      hwy::SetSupportedTargetsForTest(0);
    }
  }
}

TEST(SelectiveScan, AStrongDecayForgetsExactly) {
  auto in = make_inputs({1, 16, 2, 4, 1, false, false, false, false, true});
  in[1] = torch::full({1, 16, 2}, 100.0);
  in[2] = torch::full({16, 4}, -1.0);
  in[0] = torch::zeros({1, 16, 2});
  in[8] = torch::full({1, 16, 4}, 1e38);
  const auto [y, state] = run(in, false);
  EXPECT_EQ(y.abs().max().item<float>(), 0);
  EXPECT_EQ(state.abs().max().item<float>(), 0);
}

TEST(SelectiveScan, TakesAnEmptyBatch) {
  const auto in = make_inputs({0, 12, 8, 4, 1, false, false, true, true, true});
  for (const bool fused : {false, true}) {
    const auto all = results(in, true, fused);
    EXPECT_EQ(all[9].sizes(), (std::vector<int64_t>{0, 12, 8}));
    EXPECT_EQ(all[2].abs().max().item<float>(), 0);
  }
}

TEST(SelectiveScan, TheFusedKernelRefusesASecondDerivative) {
  auto in = make_inputs({1, 8, 4, 2, 1, false, false, true, true, true});
  in[0] = in[0].clone().requires_grad_(true);
  const Tensor loss = std::get<0>(run(in, true)).pow(2).sum();
  EXPECT_ANY_THROW(torch::autograd::grad({loss}, {in[0]}, {}, true, /*create_graph=*/true));
}

TEST(SelectiveScan, RefusesWrongShapes) {
  const auto good = make_inputs({2, 12, 8, 4, 1, false, false, true, true, true});
  const auto refused = [&](size_t index, const Tensor& bad) {
    auto in = good;
    in[index] = bad;
    EXPECT_THROW(run(in, true), UsageError) << "input " << index;
  };
  refused(0, torch::randn({2, 12, 0}));
  refused(0, torch::ones({2, 12, 8}, torch::kLong));
  refused(1, torch::randn({2, 12, 7}));
  refused(2, torch::randn({11, 4}));
  refused(3, torch::randn({2, 5, 4, 8}));  // 5 groups do not divide 12 channels
  refused(4, torch::randn({2, 3, 8}));
  refused(5, torch::randn({11}));
  refused(8, torch::randn({1, 12, 4}));
}

}  // namespace
}  // namespace seqloom
