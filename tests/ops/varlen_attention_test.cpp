#include "ops/varlen_attention.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <algorithm>
#include <limits>

#include "base/error.h"
#include "ops/attention_merge.h"
#include "ops/fused.h"
#include "support/compare.h"

namespace seqloom {
namespace {

using torch::Tensor;

struct Shape {
  std::vector<int64_t> queries, keys;  // of each sequence
  int64_t heads, kv_heads, width;
  bool causal = false;
  int64_t window = 0;
  bool holes = false;
  int64_t reach = -1;  // of a bias by distance; -1: none
  double softcap = 0;
};

std::ostream& operator<<(std::ostream& out, const Shape& s) {
  return out << s.queries.size() << " sequences, first " << s.queries[0] << " x " << s.keys[0] << ", H" << s.heads
             << " Hkv" << s.kv_heads << " d" << s.width << (s.causal ? " causal" : "") << " window " << s.window
             << " reach " << s.reach << " softcap " << s.softcap;
}

Tensor offsets(const std::vector<int64_t>& lengths) {
  return torch::cat({torch::zeros({1}, torch::kInt64), torch::tensor(lengths).cumsum(0)});
}

struct Inputs {
  Tensor q, k, v, bias, keep;

  std::vector<Tensor*> floats() {
    std::vector<Tensor*> all = {&q, &k, &v};
    if (bias.defined()) all.push_back(&bias);
    return all;
  }
};

Inputs make_inputs(const Shape& s) {
  const Tensor first_q = offsets(s.queries), first_k = offsets(s.keys);
  const int64_t nq = first_q[-1].item<int64_t>(), nk = first_k[-1].item<int64_t>();
  Inputs in{torch::randn({nq, s.heads, s.width}), torch::randn({nk, s.kv_heads, s.width}),
            torch::randn({nk, s.kv_heads, s.width}), Tensor(), Tensor()};
  if (s.reach >= 0) in.bias = torch::randn({s.heads, 2 * s.reach + 1});
  if (s.holes) in.keep = torch::rand({nk}) > 0.4;
  return in;
}

std::tuple<Tensor, Tensor> run(const Inputs& in, const Shape& s) {
  return ops::varlen_attention(in.q, in.k, in.v, offsets(s.queries), offsets(s.keys), s.causal,
                               s.window > 0 ? std::make_optional(s.window) : std::nullopt, 0.4,
                               in.keep.defined() ? std::make_optional(in.keep) : std::nullopt,
                               in.bias.defined() ? std::make_optional(in.bias) : std::nullopt,
                               s.softcap > 0 ? std::make_optional(s.softcap) : std::nullopt);
}

/// o, e^lse of what sees something, and the gradients of a weighted sum of both.
std::vector<Tensor> results(const Inputs& in, const Shape& s, bool fused) {
  Inputs leaves = in;
  std::vector<Tensor> inputs;
  for (Tensor* t : leaves.floats()) inputs.push_back(*t = t->detach().clone().requires_grad_(true));
  ops::set_fused_enabled(fused);
  const auto [o, lse] = run(leaves, s);
  torch::manual_seed(3);
  const Tensor seen = lse.masked_fill(lse.isneginf(), 0);
  const Tensor loss = (o * torch::randn(o.sizes())).sum() + (seen * torch::randn(seen.sizes())).sum();
  auto all = torch::autograd::grad({loss}, inputs, {}, {}, false, /*allow_unused=*/true);
  ops::set_fused_enabled(true);
  for (size_t i = 0; i < all.size(); ++i) {
    if (!all[i].defined()) all[i] = torch::zeros_like(inputs[i]);
  }
  all.push_back(o.detach());
  all.push_back(lse.detach().exp());
  return all;
}

/// The reference's results in float64.
std::vector<Tensor> exact_results(Inputs in, const Shape& s) {
  for (Tensor* t : in.floats()) *t = t->to(torch::kFloat64);
  return results(in, s, false);
}

/// Runs `check` under every SIMD target that this machine has.
template <typename Check>
void on_every_target(Check check) {
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    hwy::SetSupportedTargetsForTest(target);
    SCOPED_TRACE(hwy::TargetName(target));
    check();
    hwy::SetSupportedTargetsForTest(0);
  }
}

class FusedVarlen : public testing::TestWithParam<Shape> {};

TEST_P(FusedVarlen, EqualsTheReferenceOnEveryTarget) {
  torch::manual_seed(1);
  const Inputs in = make_inputs(GetParam());
  const auto want = results(in, GetParam(), false);
  on_every_target([&] {
    const auto got = results(in, GetParam(), true);
    for (size_t i = 0; i < want.size(); ++i) expect_near(got[i], want[i], 2e-5, "result " + std::to_string(i));
  });
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, FusedVarlen,
    testing::Values(Shape{{7, 1, 12, 4}, {7, 1, 12, 4}, 3, 3, 8}, Shape{{300}, {300}, 2, 2, 64, true},
                    Shape{{65, 0, 130}, {65, 0, 130}, 4, 2, 16, true}, Shape{{4, 1, 6, 3}, {9, 5, 2, 0}, 2, 1, 5, true},
                    Shape{{0, 5, 64}, {3, 0, 100}, 3, 1, 20}, Shape{{1, 1, 1}, {200, 1, 64}, 4, 4, 33, true},
                    Shape{{150, 70}, {150, 70}, 2, 2, 48, true, 17}, Shape{{200}, {260}, 2, 1, 80, true, 64},
                    Shape{{90}, {90}, 1, 1, 7, true, 1000}, Shape{{100, 40}, {100, 40}, 2, 2, 24, true, 1},
                    Shape{{100, 3}, {100, 3}, 2, 2, 12, true, 0, true},
                    Shape{{70, 9}, {33, 9}, 2, 1, 130, false, 0, true}, Shape{{77}, {20}, 2, 1, 12, true},
                    Shape{{64}, {96}, 1, 1, 1}, Shape{{0}, {0}, 2, 2, 4}, Shape{{130}, {200}, 2, 1, 9, true, 40, true},
                    Shape{{1100}, {1100}, 1, 1, 8, true}));

class FusedVarlenBias : public testing::TestWithParam<Shape> {};

TEST_P(FusedVarlenBias, EqualsTheReferenceInFloat64OnEveryTarget) {
  torch::manual_seed(12);
  const Inputs in = make_inputs(GetParam());
  const auto want = exact_results(in, GetParam());
  on_every_target([&] {
    const auto got = results(in, GetParam(), true);
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < want.size(); ++i) expect_near(got[i], want[i], 3e-5, "result " + std::to_string(i));
  });
}

INSTANTIATE_TEST_SUITE_P(Shapes, FusedVarlenBias,
                         testing::Values(Shape{{7, 1, 12, 4}, {7, 1, 12, 4}, 3, 3, 8, true, 0, false, 3},
                                         Shape{{300}, {300}, 2, 2, 32, true, 0, false, 299},
                                         Shape{{300}, {300}, 2, 1, 20, true, 0, false, 40},
                                         Shape{{300, 70}, {300, 70}, 2, 2, 20, false, 0, false, 100},
                                         Shape{{200, 5}, {260, 9}, 4, 2, 16, true, 64, false, 80},
                                         Shape{{65, 0, 130}, {65, 3, 130}, 2, 2, 9, false, 0, true, 5},
                                         Shape{{77}, {20}, 2, 1, 12, true, 0, false, 10},
                                         Shape{{77}, {20}, 2, 1, 12, false, 0, false, 90},
                                         Shape{{1}, {150}, 2, 2, 16, true, 0, false, 0},
                                         Shape{{1100}, {1100}, 1, 1, 8, true, 0, false, 200},
                                         Shape{{90, 30}, {90, 30}, 2, 1, 16, true, 0, true, -1, 1.5},
                                         Shape{{130, 9}, {70, 20}, 2, 2, 24, false, 0, false, 33, 3.0}));

TEST(VarlenAttention, ABiasByDistanceIsThatOfEveryPair) {
  torch::manual_seed(13);
  const Shape s{{6, 9}, {6, 9}, 2, 2, 5, true, 0, false, 3};
  const Inputs in = make_inputs(s);
  const Tensor o = std::get<0>(run(in, s));
  for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, 6}, {6, 9}}) {
    for (int64_t h = 0; h < 2; ++h) {
      const auto part = [&](const Tensor& t) { return t.narrow(0, first, count).select(1, h); };
      Tensor scores = 0.4 * torch::matmul(part(in.q), part(in.k).t());
      for (int64_t i = 0; i < count; ++i) {
        for (int64_t j = 0; j < count; ++j) {
          scores[i][j] += in.bias[h][std::clamp<int64_t>(j - i, -3, 3) + 3];
          if (j > i) scores[i][j].fill_(-std::numeric_limits<float>::infinity());
        }
      }
      expect_near(part(o), torch::matmul(scores.softmax(1), part(in.v)), 1e-5, "by hand");
    }
  }
}

TEST(VarlenAttention, ABiasOfMinusInfinityHides) {
  torch::manual_seed(14);
  const Shape s{{50}, {50}, 2, 2, 8, false, 0, false, 60};
  Inputs in = make_inputs(s);
  in.bias.narrow(1, 61, 60).fill_(-std::numeric_limits<float>::infinity());  // keys behind the query
  Inputs plain = in;
  plain.bias = torch::constant_pad_nd(in.bias.narrow(1, 0, 61), {0, 60});
  const Shape causal{{50}, {50}, 2, 2, 8, true, 0, false, 60};
  on_every_target([&] {
    const auto got = results(in, s, true), want = results(plain, causal, true);
    for (size_t i = 0; i < want.size(); ++i) expect_near(got[i], want[i], 1e-5, "result " + std::to_string(i));
  });
}

TEST(VarlenAttention, RandomShapesEqualTheReference) {
  torch::manual_seed(4);
  const auto random = [](int64_t low, int64_t high) { return torch::randint(low, high + 1, {1}).item<int64_t>(); };
  for (int trial = 0; trial < 30; ++trial) {
    Shape s;
    s.kv_heads = random(1, 2);
    s.heads = s.kv_heads * random(1, 3);
    s.width = random(1, 40);
    s.causal = random(0, 1) == 1;
    s.window = s.causal && random(0, 1) == 1 ? random(1, 100) : 0;
    s.holes = random(0, 2) == 0;
    s.reach = random(0, 2) == 0 ? random(0, 150) : -1;
    s.softcap = random(0, 3) == 0 ? 2.5 : 0;
    for (int64_t r = random(1, 4); r > 0; --r) {
      s.queries.push_back(random(0, 140));
      s.keys.push_back(random(0, 1) == 1 ? s.queries.back() : random(0, 140));
    }
    SCOPED_TRACE(testing::Message() << s);
    const Inputs in = make_inputs(s);
    const auto want = results(in, s, false), got = results(in, s, true);
    for (size_t i = 0; i < want.size(); ++i) expect_near(got[i], want[i], 2e-5, "result " + std::to_string(i));
  }
}

TEST(VarlenAttention, TakesStridedRowsAndDoesNotDependOnTheNumberOfThreads) {
  torch::manual_seed(5);
  const Shape s{{700, 90}, {700, 90}, 4, 2, 24, true, 0, false, 300};
  Inputs in = make_inputs(s);
  const auto want = results(in, s, true);
  for (Tensor* t : {&in.q, &in.k, &in.v}) *t = t->permute({1, 2, 0}).contiguous().permute({2, 0, 1});
  const int threads = torch::get_num_threads();
  for (const int count : {1, 2, 5}) {
    torch::set_num_threads(count);
    const auto got = results(in, s, true);
    for (size_t i = 0; i < want.size(); ++i) EXPECT_TRUE(torch::equal(got[i], want[i])) << count << " threads, " << i;
  }
  torch::set_num_threads(threads);
}

TEST(VarlenAttention, SurvivesHugeScores) {
  torch::manual_seed(6);
  const Shape s{{70, 5}, {70, 5}, 2, 2, 16, true};
  Inputs in = make_inputs(s);
  in.q = in.q * 1e4;
  in.k = in.k * 1e4;
  const auto want = results(in, s, false);
  on_every_target([&] {
    const auto got = results(in, s, true);
    EXPECT_TRUE(got[3].isfinite().all().item<bool>());
    // one key takes all; a rounded score decides which, so that only values are compared
    EXPECT_GT((got[3] - want[3]).abs().lt(1e-3).to(torch::kFloat32).mean().item<double>(), 0.99);
  });
  in.k = in.k.abs() * -1e4;
  in.q = in.q.abs();
  on_every_target([&] { EXPECT_TRUE(std::get<0>(run(in, s)).isfinite().all().item<bool>()); });
}

TEST(VarlenAttention, ANaNReachesWhoSeesItAndNobodyElse) {
  torch::manual_seed(7);
  const Shape s{{40, 20}, {40, 20}, 2, 2, 16, true};
  for (const bool of_query : {true, false}) {
    Inputs in = make_inputs(s);
    (of_query ? in.q : in.k).index_put_({17, 1, 3}, std::numeric_limits<float>::quiet_NaN());
    on_every_target([&] {
      const Tensor bad = std::get<0>(run(in, s)).isnan().any(2);  // [N, H]
      EXPECT_EQ(bad.sum().item<int64_t>(), of_query ? 1 : 40 - 17);
      EXPECT_TRUE(bad[17][1].item<bool>());
    });
  }
}

TEST(VarlenAttention, SecondDerivativesAreThoseOfTheReference) {
  const Shape s{{5, 9}, {5, 9}, 2, 1, 6, true, 0, false, 4, 3.0};
  const auto second = [&](bool fused) {
    torch::manual_seed(8);
    Inputs in = make_inputs(s);
    std::vector<Tensor> inputs;
    for (Tensor* t : in.floats()) inputs.push_back(t->requires_grad_(true));
    ops::set_fused_enabled(fused);
    const auto [o, lse] = run(in, s);
    const auto first = torch::autograd::grad({o.pow(2).sum() + lse.sum()}, inputs, {}, true, true);
    Tensor norm = torch::zeros({});
    for (const Tensor& g : first) norm = norm + g.pow(2).sum();
    ops::set_fused_enabled(true);
    return torch::autograd::grad({norm}, inputs);
  };
  const auto want = second(false), got = second(true);
  for (size_t i = 0; i < want.size(); ++i) expect_near(got[i], want[i], 1e-4, "second derivative");
}

TEST(VarlenAttention, TakesBfloat16AndSumsInFloat32) {
  torch::manual_seed(9);
  for (const Shape& s : {Shape{{300, 41}, {300, 41}, 4, 2, 64, true}, Shape{{100}, {70}, 2, 2, 20},
                         Shape{{90, 7}, {200, 7}, 2, 1, 48, true, 30, true}}) {
    SCOPED_TRACE(testing::Message() << s);
    Inputs in = make_inputs(s);
    for (Tensor* t : {&in.q, &in.k, &in.v}) *t = t->to(torch::kBFloat16);
    Inputs wide = in;
    for (Tensor* t : {&wide.q, &wide.k, &wide.v}) *t = t->to(torch::kFloat32);
    EXPECT_EQ(std::get<0>(run(in, s)).scalar_type(), torch::kBFloat16);
    EXPECT_EQ(std::get<1>(run(in, s)).scalar_type(), torch::kFloat32);
    const auto want = results(wide, s, false);
    on_every_target([&] {
      const auto got = results(in, s, true);
      for (size_t i = 0; i < want.size(); ++i) expect_near(got[i], want[i], 0.01, "result " + std::to_string(i));
    });
  }
}

TEST(VarlenAttention, ReferenceHoldsInFloat64AgainstFiniteDifferences) {
  torch::manual_seed(10);
  const Shape s{{3, 4}, {5, 4}, 2, 1, 3, true, 3, false, 2, 4.0};
  Inputs in = make_inputs(s);
  std::vector<Tensor> inputs;
  for (Tensor* t : in.floats()) inputs.push_back(*t = t->to(torch::kFloat64).requires_grad_(true));
  const auto loss = [&] {
    const auto [o, lse] = run(in, s);
    return o.pow(2).sum() + (lse.masked_fill(lse.isneginf(), 0) * 0.3).sum();
  };
  const auto gradients = torch::autograd::grad({loss()}, inputs);
  const torch::NoGradGuard no_grad;
  constexpr double kStep = 1e-5;
  for (size_t t = 0; t < inputs.size(); ++t) {
    Tensor flat = inputs[t].view({-1});
    for (int64_t i = 0; i < flat.numel(); i += t == 3 ? 1 : 5) {
      flat[i] += kStep;
      const double up = loss().item<double>();
      flat[i] -= 2 * kStep;
      const double down = loss().item<double>();
      flat[i] += kStep;
      EXPECT_NEAR(gradients[t].reshape({-1})[i].item<double>(), (up - down) / (2 * kStep), 1e-6);
    }
  }
}

TEST(VarlenAttention, SegmentsOfTheKeysMergeToAll) {
  torch::manual_seed(11);
  const Tensor q = torch::randn({20, 2, 8}), k = torch::randn({512, 2, 8}), v = torch::randn({512, 2, 8});
  const auto over = [&](int64_t first, int64_t last) {
    return ops::varlen_attention(q, k.slice(0, first, last), v.slice(0, first, last), offsets({20}),
                                 offsets({last - first}));
  };
  Tensor o = torch::zeros_like(q), lse = torch::full({20, 2}, -std::numeric_limits<float>::infinity());
  const std::vector<int64_t> cuts = {0, 3, 100, 100, 101, 300, 511, 512};
  for (const size_t i : {4, 0, 6, 2, 1, 5, 3}) {
    const auto [o_i, lse_i] = over(cuts[i], cuts[i + 1]);
    std::tie(o, lse) = ops::attention_merge(o_i, lse_i, o, lse);
  }
  const auto [all_o, all_lse] = over(0, 512);
  expect_near(o, all_o, 1e-6, "outputs");
  expect_near(lse, all_lse, 1e-6, "log-sum-exp");
}

TEST(VarlenAttention, MergingTwoEmptySetsIsEmptyAndHasFiniteGradients) {
  const auto lse = [] {
    return torch::full({3}, -std::numeric_limits<float>::infinity()).index_put_({1}, 2.0).requires_grad_(true);
  };
  const Tensor a = lse(), b = lse().detach().index_put_({2}, 1.0).requires_grad_(true);
  const Tensor o1 = torch::ones({3, 2}).requires_grad_(true), o2 = torch::zeros({3, 2});
  const auto [o, total] = ops::attention_merge(o1, a, o2, b);
  EXPECT_TRUE(total[0].isneginf().item<bool>());
  EXPECT_EQ(o[0].abs().sum().item<float>(), 0);
  EXPECT_NEAR(o[1][0].item<float>(), 0.5, 1e-6);
  EXPECT_EQ(total[2].item<float>(), 1);
  (o.sum() + total.slice(0, 1).sum()).backward();
  for (const Tensor& t : {a, b, o1}) EXPECT_TRUE(t.grad().isfinite().all().item<bool>());
}

TEST(VarlenAttention, RefusesWrongShapesAndOffsets) {
  const Tensor q = torch::randn({6, 4, 8}), k = torch::randn({6, 2, 8}), first = offsets({2, 4});
  const auto refused = [&](const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& a, const Tensor& b,
                           bool causal = false, std::optional<int64_t> window = {}, std::optional<Tensor> keep = {}) {
    EXPECT_THROW(ops::varlen_attention(q, k, v, a, b, causal, window, {}, keep), UsageError);
  };
  refused(q, k, torch::randn({6, 2, 7}), first, first);
  refused(q, torch::randn({6, 3, 8}), torch::randn({6, 3, 8}), first, first);
  refused(q, k.to(torch::kFloat64), k, first, first);
  refused(q.to(torch::kInt64), k.to(torch::kInt64), k.to(torch::kInt64), first, first);
  refused(q, k, k, offsets({2, 3}), first);
  refused(q, k, k, offsets({-1, 7}), first);
  refused(q, k, k, first, offsets({6}));
  refused(q, k, k, first.to(torch::kFloat32), first);
  refused(q, k, k, torch::zeros({0}, torch::kInt64), first);
  refused(q, k, k, first, first, false, 3);
  refused(q, k, k, first, first, true, 0);
  refused(q, k, k, first, first, true, {}, torch::ones({5}, torch::kBool));
  for (const Tensor& bias : {torch::randn({4, 6}), torch::randn({2, 5}), torch::ones({4, 5}, torch::kInt64)}) {
    EXPECT_THROW(ops::varlen_attention(q, k, k, first, first, false, {}, {}, {}, bias), UsageError);
  }
  EXPECT_THROW(ops::varlen_attention(q, k, k, first, first, false, {}, {}, {}, {}, 0.0), UsageError);
}

}  // namespace
}  // namespace seqloom
