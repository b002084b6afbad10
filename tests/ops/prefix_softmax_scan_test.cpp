// The chunked scan against the definition: a softmax over every prefix.
#include "ops/prefix_softmax_scan.h"

#include <gtest/gtest.h>

#include <limits>

#include "base/error.h"
#include "support/compare.h"

namespace seqloom {
namespace {

using ops::SoftmaxPartial;
using torch::Tensor;

constexpr int64_t B = 2, H = 3, K = 5;
constexpr double kInfinity = std::numeric_limits<double>::infinity();
const auto kDouble = torch::dtype(torch::kFloat64);

struct Inputs {
  Tensor s, v;
  std::optional<Tensor> mask;
  std::optional<SoftmaxPartial> initial;
};

Inputs make_inputs(int64_t tokens, double spread) {
  return {torch::randn({B, H, tokens}, kDouble) * spread, torch::randn({B, H, tokens, K}, kDouble), {}, {}};
}

SoftmaxPartial make_state() {
  return {torch::randn({B, H}, kDouble), torch::rand({B, H}, kDouble) + 0.5, torch::randn({B, H, K}, kDouble)};
}

Inputs to(const Inputs& in, torch::ScalarType type) {
  Inputs out = {in.s.to(type), in.v.to(type), in.mask, {}};
  if (in.initial) out.initial = {in.initial->m.to(type), in.initial->u.to(type), in.initial->w.to(type)};
  return out;
}

std::pair<Tensor, SoftmaxPartial> scan(const Inputs& in, int64_t chunk = 32) {
  return ops::prefix_softmax_scan(in.s, in.v, in.mask, in.initial, {}, chunk);
}

/// One prefix after the other.
std::pair<Tensor, SoftmaxPartial> by_prefix(const Inputs& in) {
  const Tensor s = in.mask ? in.s.masked_fill(in.mask->logical_not(), -kInfinity) : in.s;
  std::vector<Tensor> outputs;
  SoftmaxPartial state;
  for (int64_t t = 1; t <= s.size(2); ++t) {
    state = ops::softmax_total(s.narrow(2, 0, t), in.v.narrow(2, 0, t));
    if (in.initial) state = ops::merge(*in.initial, state);
    outputs.push_back(ops::value(state));
  }
  return {torch::stack(outputs, 2), state};
}

void expect_same(const std::pair<Tensor, SoftmaxPartial>& got, const std::pair<Tensor, SoftmaxPartial>& want,
                 double tolerance) {
  expect_near(got.first, want.first, tolerance, "y");
  const auto number = [](const Tensor& m) { return torch::nan_to_num(m, NAN, kInfinity, /*neginf=*/-1); };
  expect_near(number(got.second.m), number(want.second.m), tolerance, "m");
  expect_near(got.second.u, want.second.u, tolerance, "u");
  expect_near(got.second.w, want.second.w, tolerance, "w");
}

TEST(PrefixSoftmaxScan, AnyLengthInAnyChunks) {
  for (const int64_t tokens : {1, 2, 7, 31, 32, 33, 97}) {
    Inputs in = make_inputs(tokens, 3);
    for (const bool with_state : {false, true}) {
      if (with_state) in.initial = make_state();
      const auto want = by_prefix(in);
      for (const int64_t chunk : {1, 7, 32, 200}) expect_same(scan(in, chunk), want, 1e-12);
      expect_same(scan(to(in, torch::kFloat32)), want, 1e-5);
    }
  }
}

TEST(PrefixSoftmaxScan, LateHugeScoresLeaveEarlierPrefixesAlone) {
  Inputs in = make_inputs(80, 40);
  in.s.narrow(2, 70, 10) += 1e4;
  expect_same(scan(to(in, torch::kFloat32)), by_prefix(to(in, torch::kFloat32)), 1e-5);
}

TEST(PrefixSoftmaxScan, MaskedTokensAreTheIdentity) {
  Inputs in = make_inputs(40, 3);
  in.mask = torch::rand({B, H, 40}) > 0.4;
  in.mask->select(0, 0).narrow(-1, 0, 35).fill_(false);  // whole chunks of nothing
  const auto want = by_prefix(in);
  in.s = in.s.masked_fill(in.mask->logical_not(), kInfinity).requires_grad_(true);  // what stands there is not read
  in.v = in.v.masked_fill(in.mask->logical_not().unsqueeze(-1), NAN).requires_grad_(true);
  const auto got = scan(in, 8);
  expect_same(got, want, 1e-12);
  EXPECT_EQ(got.first.select(0, 0).narrow(1, 0, 35).abs().max().item<double>(), 0);
  for (const Tensor& gradient : torch::autograd::grad({got.first.sum()}, {in.s, in.v})) {
    EXPECT_TRUE(gradient.isfinite().all().item<bool>());
    EXPECT_EQ(gradient.select(0, 0).narrow(1, 0, 35).abs().max().item<double>(), 0);
  }
}

TEST(PrefixSoftmaxScan, NothingSeenAtAll) {
  Inputs in = make_inputs(6, 1);
  in.mask = torch::zeros({B, 1, 6}, torch::kBool);
  const auto [y, state] = scan(in, 4);
  EXPECT_EQ(y.abs().max().item<double>(), 0);
  EXPECT_TRUE(state.m.eq(-kInfinity).all().item<bool>());
  EXPECT_EQ(state.u.abs().max().item<double>() + state.w.abs().max().item<double>(), 0);

  in.mask = {};
  in.initial = state;  // the identity as the state before changes nothing
  const auto got = scan(in);
  in.initial = {};
  expect_same(got, scan(in), 0);
}

TEST(PrefixSoftmaxScan, NoTokensLeaveTheState) {
  Inputs in = make_inputs(0, 1);
  in.initial = make_state();
  const auto [y, state] = scan(in);
  EXPECT_EQ(y.sizes(), in.v.sizes());
  EXPECT_TRUE(state.w.equal(in.initial->w));
}

TEST(PrefixSoftmaxScan, GradientsOfEverythingButTheMaximum) {
  for (const int64_t tokens : {1, 11}) {
    Inputs in = make_inputs(tokens, 2);
    in.initial = make_state();
    std::vector<Tensor> leaves = {in.s, in.v, in.initial->m, in.initial->u, in.initial->w};
    for (Tensor& leaf : leaves) leaf.requires_grad_(true);
    const Tensor cotangent = torch::randn_like(in.v), last = torch::randn({B, H, K}, kDouble);
    // outputs, and what a later reader makes of the state
    const auto loss = [&](const std::pair<Tensor, SoftmaxPartial>& result) {
      const SoftmaxPartial more = ops::merge(result.second, make_state());
      return (result.first * cotangent).sum() + (ops::value(more) * last).sum();
    };
    const auto gradients = [&](auto evaluate) {
      torch::manual_seed(3);
      return torch::autograd::grad({loss(evaluate())}, leaves);
    };
    const auto got = gradients([&] { return scan(in, 4); });
    const auto want = gradients([&] { return by_prefix(in); });
    for (size_t i = 0; i < leaves.size(); ++i) expect_near(got[i], want[i], 1e-11, "gradient " + std::to_string(i));
  }
}

TEST(PrefixSoftmaxScan, AgreesWithCentralDifferences) {
  Inputs in = make_inputs(9, 1.5);
  in.initial = make_state();
  const Tensor cotangent = torch::randn_like(in.v);
  const auto value = [&] { return (scan(in, 4).first * cotangent).sum(); };
  for (Tensor* leaf : {&in.s, &in.v, &in.initial->m, &in.initial->u, &in.initial->w}) {
    leaf->requires_grad_(true);
    const Tensor direction = torch::randn_like(*leaf);
    const auto analytic = (torch::autograd::grad({value()}, {*leaf})[0] * direction).sum().item<double>();
    const torch::NoGradGuard no_grad;
    leaf->add_(direction, 1e-6);
    const auto above = value().item<double>();
    leaf->sub_(direction, 2e-6);
    EXPECT_NEAR(analytic, (above - value().item<double>()) / 2e-6, 1e-7);
    leaf->add_(direction, 1e-6);
  }
}

TEST(PrefixSoftmaxScan, RefusesWhatHasNoSoftmax) {
  for (const double bad : {kInfinity, static_cast<double>(NAN)}) {
    for (const int64_t tokens : {1, 9}) {
      Inputs in = make_inputs(tokens, 1);
      in.s[1][2][tokens - 1] = bad;
      EXPECT_THROW(scan(in), UsageError);
    }
  }
  Inputs in = make_inputs(9, 1);
  EXPECT_THROW(scan(in, 0), UsageError);
  in.initial = {torch::zeros({B, H}), torch::zeros({B, H}), torch::zeros({B, H, K + 1})};
  EXPECT_THROW(scan(in), UsageError);
  in = make_inputs(9, 1);
  in.v = in.v.narrow(2, 0, 8);
  EXPECT_THROW(scan(in), UsageError);
}

}  // namespace
}  // namespace seqloom
