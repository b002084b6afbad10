// RWKV's chunked ops against their definitions, token by token.
#include "ops/rwkv.h"

#include <gtest/gtest.h>

#include <limits>

#include "base/error.h"
#include "support/compare.h"

namespace seqloom {
namespace {

using torch::Tensor;

constexpr int64_t B = 2, T = 37, H = 2, K = 8, V = 6;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Inputs {
  Tensor r, w, k, v, a, b, u, state;
  std::vector<Tensor> all() const { return {r, w, k, v, a, b, u, state}; }
};

Inputs make_inputs(double gate_strength, int64_t tokens = T) {
  torch::manual_seed(3);
  const auto random = [&](int64_t width) { return torch::randn({B, tokens, H, width}, torch::kFloat64); };
  Inputs in{random(K),
            -gate_strength * torch::rand({B, tokens, H, K}, torch::kFloat64),
            random(K),
            random(V),
            {},
            {},
            torch::randn({H, K}, torch::kFloat64),
            torch::randn({B, H, K, V}, torch::kFloat64)};
  const Tensor unit = random(K);
  in.a = -unit / unit.norm(2, {-1}, true);
  in.b = -in.a * torch::rand({B, tokens, H, 1}, torch::kFloat64);
  return in;
}

Inputs in_type(const Inputs& in, torch::ScalarType type) {
  return {in.r.to(type), in.w.to(type), in.k.to(type), in.v.to(type),
          in.a.to(type), in.b.to(type), in.u.to(type), in.state.to(type)};
}

/// Reads S [B, H, K, V] with x [B, H, K].
Tensor read(const Tensor& S, const Tensor& x) {
  return (S * x.unsqueeze(-1)).sum(-2);
}

std::pair<Tensor, Tensor> rwkv6_by_token(const Inputs& in) {
  Tensor S = in.state;
  std::vector<Tensor> outputs;
  for (int64_t t = 0; t < in.r.size(1); ++t) {
    const Tensor write = in.k.select(1, t).unsqueeze(-1) * in.v.select(1, t).unsqueeze(-2);
    outputs.push_back(read(S + in.u.unsqueeze(-1) * write, in.r.select(1, t)));
    S = in.w.select(1, t).exp().unsqueeze(-1) * S + write;
  }
  return {torch::stack(outputs, 1), S};
}

std::pair<Tensor, Tensor> rwkv7_by_token(const Inputs& in) {
  Tensor S = in.state;
  std::vector<Tensor> outputs;
  for (int64_t t = 0; t < in.r.size(1); ++t) {
    const Tensor removed = in.b.select(1, t).unsqueeze(-1) * read(S, in.a.select(1, t)).unsqueeze(-2);
    const Tensor write = in.k.select(1, t).unsqueeze(-1) * in.v.select(1, t).unsqueeze(-2);
    S = in.w.select(1, t).exp().unsqueeze(-1) * S + removed + write;
    outputs.push_back(read(S, in.r.select(1, t)));
  }
  return {torch::stack(outputs, 1), S};
}

std::pair<Tensor, Tensor> rwkv6(const Inputs& in, int64_t chunk = 64) {
  const auto [o, S] = ops::rwkv6(in.r, in.k, in.v, in.w, in.u, in.state, {}, chunk);
  return {o, S};
}

std::pair<Tensor, Tensor> rwkv7(const Inputs& in, int64_t chunk = 64) {
  const auto [o, S] = ops::rwkv7(in.r, in.w, in.k, in.v, in.a, in.b, in.state, {}, chunk);
  return {o, S};
}

using Recurrence = std::pair<Tensor, Tensor> (*)(const Inputs&);
struct Op {
  const char* name;
  Recurrence by_token;
  std::pair<Tensor, Tensor> (*chunked)(const Inputs&, int64_t);
};
constexpr Op kOps[] = {{"rwkv6", rwkv6_by_token, rwkv6}, {"rwkv7", rwkv7_by_token, rwkv7}};

TEST(Rwkv, ChunksGiveTheRecurrence) {
  for (const Op& op : kOps) {
    for (const double strength : {0.0, 0.6, 30.0, 2000.0}) {
      for (const int64_t tokens : {int64_t{1}, T}) {
        const Inputs in = make_inputs(strength, tokens);
        const auto [o, S] = op.by_token(in);
        for (const int64_t chunk : {1, 7, 16, 64}) {
          const std::string what = fmt::format("{}, gates to -{}, T = {}, chunk {}", op.name, strength, tokens, chunk);
          const auto [o64, S64] = op.chunked(in, chunk);
          expect_near(o64, o, 1e-11, what);
          expect_near(S64, S, 1e-11, what);
          const auto [o32, S32] = op.chunked(in_type(in, torch::kFloat32), chunk);
          expect_near(o32, o, 1e-5, what + ", float32");
          expect_near(S32, S, 1e-5, what + ", float32");
        }
      }
    }
  }
}

TEST(Rwkv, GradientsAreThoseOfTheRecurrence) {
  for (const Op& op : kOps) {
    for (const double strength : {0.6, 30.0}) {
      Inputs in = make_inputs(strength);
      for (Tensor& leaf : std::vector<Tensor>{in.r, in.w, in.k, in.v, in.a, in.b, in.u, in.state}) {
        leaf.requires_grad_(true);
      }
      const Tensor co = torch::randn({B, T, H, V}, torch::kFloat64), cS = torch::randn_like(in.state);
      const auto gradients = [&](const std::pair<Tensor, Tensor>& result) {
        return torch::autograd::grad({(result.first * co).sum() + (result.second * cS).sum()}, in.all(), {}, false,
                                     false, /*allow_unused=*/true);
      };
      const auto want = gradients(op.by_token(in)), got = gradients(op.chunked(in, 16));
      for (size_t i = 0; i < want.size(); ++i) {
        ASSERT_EQ(got[i].defined(), want[i].defined()) << op.name << " input " << i;
        if (want[i].defined()) expect_near(got[i], want[i], 1e-10, fmt::format("{} input {}", op.name, i));
      }
    }
  }
}

TEST(Rwkv, PackedSequencesAreThoseAlone) {
  const std::vector<int64_t> cuts = {0, 17, 17, 18, 20, 37};
  const Tensor cu_seqlens = torch::tensor(cuts, torch::kInt32);
  Inputs all = make_inputs(0.6);
  for (Tensor* t : {&all.r, &all.w, &all.k, &all.v, &all.a, &all.b}) *t = t->narrow(0, 0, 1).clone();
  all.state = torch::randn({5, H, K, V}, torch::kFloat64);
  for (Tensor& leaf : std::vector<Tensor>{all.r, all.w, all.k, all.v, all.a, all.b, all.u, all.state}) {
    leaf.requires_grad_(true);
  }
  for (const Op& op : kOps) {
    const bool six = std::string(op.name) == "rwkv6";
    const auto [o, S] = six ? ops::rwkv6(all.r, all.k, all.v, all.w, all.u, all.state, cu_seqlens)
                            : ops::rwkv7(all.r, all.w, all.k, all.v, all.a, all.b, all.state, cu_seqlens);
    std::vector<Tensor> outputs, states;
    for (int64_t s = 0; s < 5; ++s) {
      const auto part = [&](const Tensor& t) { return t.slice(1, cuts[s], cuts[s + 1]); };
      const Tensor before = all.state.narrow(0, s, 1);
      if (cuts[s] == cuts[s + 1]) {
        states.push_back(before);
        continue;
      }
      const auto [own, end] =
          op.by_token({part(all.r), part(all.w), part(all.k), part(all.v), part(all.a), part(all.b), all.u, before});
      outputs.push_back(own);
      states.push_back(end);
    }
    expect_near(o, torch::cat(outputs, 1), 1e-11, op.name);
    expect_near(S, torch::cat(states), 1e-11, op.name);
    const Tensor co = torch::randn(o.sizes(), torch::kFloat64), cS = torch::randn(S.sizes(), torch::kFloat64);
    const auto gradients = [&](const Tensor& y, const Tensor& end) {
      return torch::autograd::grad({(y * co).sum() + (end * cS).sum()}, all.all(), {}, false, false, true);
    };
    const auto got = gradients(o, S), want = gradients(torch::cat(outputs, 1), torch::cat(states));
    for (size_t i = 0; i < want.size(); ++i) {
      if (want[i].defined()) expect_near(got[i], want[i], 1e-10, fmt::format("{} input {}", op.name, i));
    }
  }
  EXPECT_THROW(ops::rwkv6(all.r, all.k, all.v, all.w, all.u, {}, torch::tensor({0, 5})), UsageError);
  EXPECT_THROW(ops::rwkv7(all.r, all.w, all.k, all.v, all.a, all.b, all.state, torch::tensor({0, 37})), UsageError);
}

TEST(Rwkv, MinusInfinityForgetsEverything) {
  for (const Op& op : kOps) {
    Inputs in = make_inputs(0.6);
    in.w.select(1, 20).fill_(-kInfinity);
    const auto [o, S] = op.by_token(in);
    const auto [got, state] = op.chunked(in, 64);
    expect_near(got, o, 1e-11, op.name);
    expect_near(state, S, 1e-11, op.name);
  }
}

TEST(Rwkv, WrongShapesAreRefused) {
  const Inputs in = make_inputs(0.6);
  EXPECT_THROW(ops::rwkv6(in.r, in.k, in.v, in.w, in.u.t(), {}), UsageError);
  EXPECT_THROW(ops::rwkv6(in.r, in.k.narrow(1, 0, 3), in.v, in.w, in.u, {}), UsageError);
  EXPECT_THROW(ops::rwkv6(in.r, in.k, in.v, -in.w, in.u, {}), UsageError);
  EXPECT_THROW(ops::rwkv7(in.r, in.w, in.k, in.v, in.a, in.b.narrow(3, 0, 2), {}), UsageError);
  EXPECT_THROW(ops::rwkv7(in.r, in.w, in.k, in.v, in.a, in.b, in.state.transpose(2, 3)), UsageError);
  EXPECT_THROW(ops::rwkv7(in.r, in.w, in.k, in.v, in.a, in.b, {}, {}, 0), UsageError);
}

}  // namespace
}  // namespace seqloom
