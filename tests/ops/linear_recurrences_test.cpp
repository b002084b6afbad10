// The chunked ops against their definitions, token by token.
#include <gtest/gtest.h>

#include "base/error.h"
#include "ops/affine_scan.h"
#include "ops/delta_rule.h"
#include "ops/gated_linear_attention.h"
#include "ops/rms_norm.h"
#include "support/compare.h"

namespace seqloom {
namespace {

using torch::Tensor;

constexpr int64_t B = 2, T = 37, H = 2, K = 8, V = 6;

struct Inputs {
  Tensor q, k, v, g, beta, state;
};

Inputs make_inputs(torch::ScalarType type, double gate_strength, bool scalar_gate) {
  const auto options = torch::TensorOptions().dtype(type);
  Inputs in;
  in.q = torch::randn({B, T, H, K}, options);
  in.k = ops::l2_norm(torch::randn({B, T, H, K}, options), 1e-6);
  in.v = torch::randn({B, T, H, V}, options);
  in.g = -torch::rand(scalar_gate ? std::vector<int64_t>{B, T, H} : std::vector<int64_t>{B, T, H, K}, options) *
         gate_strength;
  in.beta = torch::rand({B, T, H}, options) * 2;
  in.state = torch::randn({B, H, K, V}, options);
  return in;
}

std::pair<Tensor, Tensor> gla_by_token(const Inputs& in, double scale) {
  Tensor S = in.state;
  std::vector<Tensor> outputs;
  for (int64_t t = 0; t < T; ++t) {
    const Tensor g = in.g.select(1, t);
    const Tensor decay = (g.dim() == 2 ? g.unsqueeze(-1) : g).exp().unsqueeze(-1);
    S = decay * S + in.k.select(1, t).unsqueeze(-1) * in.v.select(1, t).unsqueeze(-2);
    outputs.push_back(scale * (S * in.q.select(1, t).unsqueeze(-1)).sum(-2));
  }
  return {torch::stack(outputs, 1), S};
}

std::pair<Tensor, Tensor> delta_by_token(const Inputs& in, double scale) {
  Tensor S = in.state;
  std::vector<Tensor> outputs;
  for (int64_t t = 0; t < T; ++t) {
    S = in.g.select(1, t).exp().unsqueeze(-1).unsqueeze(-1) * S;
    const Tensor k = in.k.select(1, t).unsqueeze(-1);
    const Tensor written = in.beta.select(1, t).unsqueeze(-1) * (in.v.select(1, t) - (S * k).sum(-2));
    S = S + k * written.unsqueeze(-2);
    outputs.push_back(scale * (S * in.q.select(1, t).unsqueeze(-1)).sum(-2));
  }
  return {torch::stack(outputs, 1), S};
}

/// Outputs, final state and the gradients of all inputs.
template <typename Run>
std::vector<Tensor> with_gradients(const Inputs& from, Run run) {
  Inputs in = from;
  std::vector<Tensor> leaves;
  for (Tensor* t : {&in.q, &in.k, &in.v, &in.g, &in.beta, &in.state}) {
    *t = t->detach().clone().requires_grad_(true);
    leaves.push_back(*t);
  }
  const std::pair<Tensor, Tensor> out = run(in);
  torch::manual_seed(9);
  const Tensor loss = (out.first * torch::randn(out.first.sizes(), out.first.options())).sum() +
                      (out.second * torch::randn(out.second.sizes(), out.second.options())).sum();
  auto all = torch::autograd::grad({loss}, leaves, {}, false, false, true);
  all.push_back(out.first.detach());
  all.push_back(out.second.detach());
  return all;
}

void expect_all_near(const std::vector<Tensor>& got, const std::vector<Tensor>& want, double tolerance) {
  for (size_t i = 0; i < want.size(); ++i) {
    if (!want[i].defined()) continue;
    ASSERT_TRUE(got[i].isfinite().all().item<bool>()) << "result " << i;
    expect_near(got[i], want[i], tolerance, "result " + std::to_string(i));
  }
}

TEST(GatedLinearAttention, EqualsItsDefinitionForEveryChunkAndGate) {
  torch::manual_seed(1);
  for (const double strength : {0.1, 2.0, 25.0, 200.0}) {
    for (const bool scalar : {false, true}) {
      const Inputs in = make_inputs(torch::kFloat64, strength, scalar);
      const auto want = with_gradients(in, [](const Inputs& i) { return gla_by_token(i, 0.5); });
      for (const int64_t chunk : {1, 7, 16, 64}) {
        expect_all_near(with_gradients(in,
                                       [&](const Inputs& i) {
                                         const auto [o, S] =
                                             ops::gated_linear_attention(i.q, i.k, i.v, i.g, 0.5, i.state, chunk);
                                         return std::pair(o, S);
                                       }),
                        want, 1e-9);
      }
    }
  }
}

TEST(GatedLinearAttention, StrongDecayIsExactEnoughInFloat32) {
  torch::manual_seed(2);
  for (const double strength : {1.0, 25.0, 200.0}) {
    const Inputs in = make_inputs(torch::kFloat32, strength, false);
    expect_all_near(with_gradients(in,
                                   [](const Inputs& i) {
                                     const auto [o, S] = ops::gated_linear_attention(i.q, i.k, i.v, i.g, 0.5, i.state);
                                     return std::pair(o, S);
                                   }),
                    with_gradients(in, [](const Inputs& i) { return gla_by_token(i, 0.5); }), 2e-5);
  }
}

TEST(DeltaRule, EqualsItsDefinitionForEveryChunk) {
  torch::manual_seed(3);
  for (const double strength : {0.0, 1.0, 25.0}) {
    const Inputs in = make_inputs(torch::kFloat64, strength, true);
    const auto want = with_gradients(in, [](const Inputs& i) { return delta_by_token(i, 0.5); });
    for (const int64_t chunk : {1, 7, 16, 64}) {
      expect_all_near(with_gradients(in,
                                     [&](const Inputs& i) {
                                       const auto [o, S] =
                                           ops::delta_rule(i.q, i.k, i.v, i.beta, i.g, 0.5, i.state, chunk);
                                       return std::pair(o, S);
                                     }),
                      want, 1e-8);
    }
  }
}

TEST(DeltaRule, ASecondWriteReplacesTheFirst) {
  // The sheet's claim: 32 orthonormal keys written twice; the delta rule reads the second values, plain sums both.
  torch::manual_seed(4);
  const Tensor basis = std::get<0>(torch::linalg_qr(torch::randn({64, 64}))).narrow(0, 0, 32);
  const Tensor keys = torch::cat({basis, basis}, 0).view({1, 64, 1, 64});
  const Tensor values = torch::randn({1, 64, 1, 16}), second = values.narrow(1, 32, 32);
  const auto read = [&](const Tensor& state) { return torch::matmul(basis, state[0][0]).view({1, 32, 1, 16}); };
  const auto error = [&](const Tensor& got) { return ((got - second).norm() / second.norm()).item<double>(); };
  EXPECT_LT(error(read(std::get<1>(ops::delta_rule(keys, keys, values, torch::ones({1, 64, 1}), {}, 1, {})))), 1e-5);
  EXPECT_GT(error(read(std::get<1>(ops::gated_linear_attention(keys, keys, values, {}, 1, {})))), 0.9);
}

TEST(AffineScan, EqualsTheLoopAlsoWithZerosAndSigns) {
  torch::manual_seed(5);
  for (const int64_t tokens : {1, 2, 3, 17, 64, 100}) {
    Tensor a = torch::randn({2, tokens, 5}, torch::kFloat64), b = torch::randn_like(a),
           state = torch::randn({2, 5}, torch::kFloat64);
    a.index_put_({a.gt(1)}, 0.0);
    const auto [y, last] = ops::affine_scan(a, b, state);
    Tensor h = state;
    for (int64_t t = 0; t < tokens; ++t) {
      h = a.select(1, t) * h + b.select(1, t);
      expect_near(y.select(1, t), h, 1e-12, "token");
    }
    expect_near(last, h, 1e-12, "state");
  }
}

TEST(LinearRecurrences, RefuseWrongShapes) {
  const Inputs in = make_inputs(torch::kFloat32, 1, true);
  EXPECT_THROW(ops::gated_linear_attention(in.q, in.k.narrow(1, 0, 5), in.v, {}, 1, {}), UsageError);
  EXPECT_THROW(ops::gated_linear_attention(in.q, in.k, in.v, in.g.narrow(2, 0, 1), 1, {}), UsageError);
  EXPECT_THROW(ops::gated_linear_attention(in.q, in.k, in.v, {}, 1, in.state.narrow(0, 0, 1)), UsageError);
  EXPECT_THROW(ops::delta_rule(in.q, in.k, in.v, in.beta.narrow(1, 0, 4), {}, 1, {}), UsageError);
  EXPECT_THROW(ops::affine_scan(in.q, in.v, {}), UsageError);
}

}  // namespace
}  // namespace seqloom
