// The chunked ops against their definitions, token by token.
#include <gtest/gtest.h>

#include <functional>
#include <limits>

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
constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Inputs {
  Tensor q, k, v, g, beta, state;
};

Inputs make_inputs(torch::ScalarType type, double gate_strength, bool scalar_gate, int64_t tokens = T) {
  const auto options = torch::TensorOptions().dtype(type);
  Inputs in;
  in.q = torch::randn({B, tokens, H, K}, options);
  in.k = ops::l2_norm(torch::randn({B, tokens, H, K}, options), 1e-6);
  in.v = torch::randn({B, tokens, H, V}, options);
  auto gate_shape = in.q.sizes().vec();
  if (scalar_gate) gate_shape.pop_back();
  in.g = -torch::rand(gate_shape, options) * gate_strength;
  in.beta = torch::rand({B, tokens, H}, options) * 2;
  in.state = torch::randn({B, H, K, V}, options);
  return in;
}

Inputs in_float64(const Inputs& in) {
  const auto wide = [](const Tensor& t) { return t.to(torch::kFloat64); };
  return {wide(in.q), wide(in.k), wide(in.v), wide(in.g), wide(in.beta), wide(in.state)};
}

std::pair<Tensor, Tensor> gla_by_token(const Inputs& in, double scale) {
  Tensor S = in.state;
  std::vector<Tensor> outputs;
  for (int64_t t = 0; t < in.q.size(1); ++t) {
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
  for (int64_t t = 0; t < in.q.size(1); ++t) {
    S = in.g.select(1, t).exp().unsqueeze(-1).unsqueeze(-1) * S;
    const Tensor k = in.k.select(1, t).unsqueeze(-1);
    const Tensor written = in.beta.select(1, t).unsqueeze(-1) * (in.v.select(1, t) - (S * k).sum(-2));
    S = S + k * written.unsqueeze(-2);
    outputs.push_back(scale * (S * in.q.select(1, t).unsqueeze(-1)).sum(-2));
  }
  return {torch::stack(outputs, 1), S};
}

std::pair<Tensor, Tensor> gla(const Inputs& in, int64_t chunk = 64) {
  const auto [o, S] = ops::gated_linear_attention(in.q, in.k, in.v, in.g, 0.5, in.state, {}, chunk);
  return {o, S};
}

std::pair<Tensor, Tensor> delta(const Inputs& in, int64_t chunk = 64) {
  const auto [o, S] = ops::delta_rule(in.q, in.k, in.v, in.beta, in.g, 0.5, in.state, /*cu_seqlens=*/{}, chunk);
  return {o, S};
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
  const auto weighted = [](const Tensor& t) { return (t * torch::randn(t.sizes(), torch::kFloat64).to(t)).sum(); };
  const Tensor loss = weighted(out.first) + weighted(out.second);
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
        expect_all_near(with_gradients(in, [&](const Inputs& i) { return gla(i, chunk); }), want, 1e-9);
      }
    }
  }
}

TEST(GatedLinearAttention, StrongDecayIsExactEnoughInFloat32) {
  torch::manual_seed(2);
  for (const double strength : {1.0, 25.0, 200.0}) {
    const Inputs in = make_inputs(torch::kFloat32, strength, false);
    expect_all_near(with_gradients(in, [](const Inputs& i) { return gla(i); }),
                    with_gradients(in, [](const Inputs& i) { return gla_by_token(i, 0.5); }), 2e-5);
  }
}

TEST(DeltaRule, EqualsItsDefinitionForEveryChunk) {
  torch::manual_seed(3);
  for (const double strength : {0.0, 1.0, 25.0}) {
    const Inputs in = make_inputs(torch::kFloat64, strength, true);
    const auto want = with_gradients(in, [](const Inputs& i) { return delta_by_token(i, 0.5); });
    for (const int64_t chunk : {1, 7, 16, 64}) {
      expect_all_near(with_gradients(in, [&](const Inputs& i) { return delta(i, chunk); }), want, 1e-8);
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

/// Mild gates with a reset at one token in eight, or in one channel of it.
Inputs make_resets(torch::ScalarType type, bool scalar_gate, double reset) {
  Inputs in = make_inputs(type, 0.02, scalar_gate, 90);
  in.g.masked_fill_(torch::rand(in.g.sizes()).lt(0.125), reset);
  return in;
}

TEST(LinearRecurrences, KeepTheNearPastBetweenResets) {
  torch::manual_seed(6);
  for (const auto& [type, tolerance] : {std::pair(torch::kFloat32, 1e-5), std::pair(torch::kFloat64, 1e-10)}) {
    for (const double reset : {-150.0, -1000.0, -kInfinity}) {
      SCOPED_TRACE(std::string(c10::toString(type)) + ", resets of " + std::to_string(reset));
      for (const bool scalar : {false, true}) {
        const Inputs in = make_resets(type, scalar, reset);
        const auto got = with_gradients(in, [](const Inputs& i) { return gla(i); });
        expect_all_near(got, with_gradients(in_float64(in), [](const Inputs& i) { return gla_by_token(i, 0.5); }),
                        tolerance);
        EXPECT_TRUE(got[3].masked_select(in.g.lt(-900)).eq(0).all().item<bool>()) << "the gradient of a reset";
      }
      const Inputs in = make_resets(type, true, reset);
      expect_all_near(with_gradients(in, [](const Inputs& i) { return delta(i); }),
                      with_gradients(in_float64(in), [](const Inputs& i) { return delta_by_token(i, 0.5); }),
                      tolerance);
    }
  }
}

TEST(LinearRecurrences, TheMatrixKeepsTheNearPastBetweenResets) {
  torch::manual_seed(7);
  for (const double reset : {-1000.0, -kInfinity}) {
    for (const bool scalar : {false, true}) {
      Inputs in = make_resets(torch::kFloat32, scalar, reset);
      in.state.zero_();
      const Tensor matrix = ops::gated_linear_attention_matrix(in.q, in.k, in.g, 0.5);
      expect_near(torch::matmul(matrix, in.v.transpose(1, 2)).transpose(1, 2), gla_by_token(in_float64(in), 0.5).first,
                  1e-5, "matrix");
    }
  }
}

TEST(LinearRecurrences, OneTokenEqualsTheDefinition) {
  torch::manual_seed(8);
  for (const auto& [type, tolerance] : {std::pair(torch::kFloat32, 1e-6), std::pair(torch::kFloat64, 1e-13)}) {
    for (const bool scalar : {false, true}) {
      Inputs in = make_inputs(type, 2, scalar, 1);
      in.g.select(2, 0).fill_(-kInfinity);
      expect_all_near(with_gradients(in, [](const Inputs& i) { return gla(i); }),
                      with_gradients(in_float64(in), [](const Inputs& i) { return gla_by_token(i, 0.5); }), tolerance);
      if (!scalar) continue;
      expect_all_near(with_gradients(in, [](const Inputs& i) { return delta(i); }),
                      with_gradients(in_float64(in), [](const Inputs& i) { return delta_by_token(i, 0.5); }),
                      tolerance);
    }
  }
}

TEST(LinearRecurrences, NoStateIsAZeroState) {
  torch::manual_seed(9);
  for (const int64_t tokens : {1, 5}) {
    const Inputs in = make_inputs(torch::kFloat32, 1, true, tokens);
    const Tensor zero = torch::zeros_like(in.state);
    const auto [o, S] = ops::gated_linear_attention(in.q, in.k, in.v, {}, 1, {});
    const auto [o0, S0] = ops::gated_linear_attention(in.q, in.k, in.v, torch::zeros_like(in.g), 1, zero);
    expect_near(o, o0, 1e-6, "gla");
    expect_near(S, S0, 1e-6, "gla state");
    const auto [p, R] = ops::delta_rule(in.q, in.k, in.v, in.beta, {}, 1, {});
    const auto [p0, R0] = ops::delta_rule(in.q, in.k, in.v, in.beta, torch::zeros_like(in.g), 1, zero);
    expect_near(p, p0, 1e-6, "delta");
    expect_near(R, R0, 1e-6, "delta state");
  }
}

/// The error of a refused call, empty when it went through.
template <typename Run>
std::string refusal(Run run) {
  try {
    run();
  } catch (const UsageError& error) {
    return error.what();
  }
  return "";
}

TEST(LinearRecurrences, RefuseGatesThatGrowButPassNan) {
  for (const int64_t tokens : {1, 37}) {
    for (const bool scalar : {false, true}) {
      Inputs in = make_inputs(torch::kFloat32, 1, scalar, tokens);
      std::vector<std::function<Tensor()>> reads = {
          [&] { return gla(in).first; }, [&] { return gla(in).second; },
          [&] { return ops::gated_linear_attention_matrix(in.q, in.k, in.g, 1); },
          [&] {
            return std::get<0>(ops::normalized_gated_linear_attention(in.q, in.k, in.v, in.g, 1, 1e-6, in.state, {}));
          }};
      if (scalar) reads.emplace_back([&] { return delta(in).first; });
      for (size_t i = 0; i < reads.size(); ++i) {
        SCOPED_TRACE(fmt::format("T = {}, scalar {}, read {}", tokens, scalar, i));
        in.g.select(1, tokens - 1).fill_(0.5);
        EXPECT_NE(refusal(reads[i]).find("log_decay reaches 0.5"), std::string::npos) << refusal(reads[i]);
        in.g.select(1, tokens - 1).fill_(NAN);
        EXPECT_TRUE(reads[i]().isnan().any().item<bool>());
      }
    }
  }
}

TEST(LinearRecurrences, RefuseChunksOfNoTokens) {
  const Inputs in = make_inputs(torch::kFloat32, 1, true);
  for (const int64_t chunk : {0, -3}) {
    EXPECT_NE(refusal([&] { gla(in, chunk); }).find(fmt::format("chunk = {}", chunk)), std::string::npos);
    EXPECT_NE(refusal([&] { delta(in, chunk); }).find(fmt::format("chunk = {}", chunk)), std::string::npos);
  }
}

TEST(LinearRecurrences, RefuseEmptyDimensions) {
  const char* names = "BTHKV";
  for (int empty = 0; empty < 5; ++empty) {
    int64_t n[] = {2, 3, 2, 4, 5};
    n[empty] = 0;
    const Tensor q = torch::randn({n[0], n[1], n[2], n[3]}), v = torch::randn({n[0], n[1], n[2], n[4]});
    const Tensor g = torch::zeros({n[0], n[1], n[2]});
    const std::string want = fmt::format(": {} = 0: ", names[empty]);
    for (const std::string& got : {refusal([&] { ops::gated_linear_attention(q, q, v, g, 1, {}); }), refusal([&] {
                                     ops::normalized_gated_linear_attention(q, q, v, g, 1, 1e-6, {}, {});
                                   }),
                                   refusal([&] { ops::delta_rule(q, q, v, g, g, 1, {}); })}) {
      EXPECT_NE(got.find(want), std::string::npos) << got;
    }
  }
}

TEST(LinearRecurrences, RefuseWrongShapes) {
  const Inputs in = make_inputs(torch::kFloat32, 1, true);
  EXPECT_THROW(ops::gated_linear_attention(in.q, in.k.narrow(1, 0, 5), in.v, {}, 1, {}), UsageError);
  EXPECT_THROW(ops::gated_linear_attention(in.q, in.k, in.v, in.g.narrow(2, 0, 1), 1, {}), UsageError);
  EXPECT_THROW(ops::gated_linear_attention(in.q, in.k, in.v, {}, 1, in.state.narrow(0, 0, 1)), UsageError);
  EXPECT_THROW(ops::normalized_gated_linear_attention(in.q, in.k, in.v, {}, 1, 1e-6, {}, in.state), UsageError);
  EXPECT_THROW(ops::delta_rule(in.q, in.k, in.v, in.beta.narrow(1, 0, 4), {}, 1, {}), UsageError);
  EXPECT_THROW(ops::affine_scan(in.q, in.v, {}), UsageError);
}

}  // namespace
}  // namespace seqloom
