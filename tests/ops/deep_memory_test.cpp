// The chunk-parallel closed form against the definition: one token at a time, gradients by autograd.
#include "ops/deep_memory.h"

#include <gtest/gtest.h>

#include "ops/newton_schulz.h"
#include "support/compare.h"

namespace seqloom {
namespace {

using ops::DeepMemoryRule;
using ops::DeepMemoryState;
using ops::DeepMemoryTokens;
using torch::Tensor;
using Optimizer = DeepMemoryRule::Optimizer;

constexpr int64_t B = 2, H = 2, K = 5, kHidden = 7, T = 11;

Tensor network(const std::vector<Tensor>& weights, const Tensor& z, bool residual) {
  return ops::through_network(static_cast<int64_t>(weights.size()), z, residual, [&](size_t l, const Tensor& h) {
    return torch::matmul(weights[l], h.unsqueeze(-1)).squeeze(-1);
  });
}

Tensor loss_of(const DeepMemoryRule& rule, const std::vector<Tensor>& weights, const DeepMemoryTokens& t, int64_t i) {
  const Tensor answer = network(weights, t.k.select(2, i), rule.residual), v = t.v.select(2, i);
  const Tensor each = rule.hebbian ? -(answer * v) : (answer - v).square();
  return (t.omega.select(2, i) * (rule.mean_loss ? each.mean(-1) : each.sum(-1))).sum();
}

Tensor by_token(const DeepMemoryRule& rule, const DeepMemoryTokens& t, DeepMemoryState& state) {
  std::vector<Tensor> outputs;
  const auto at = [](const Tensor& gate, int64_t i) { return gate.select(2, i).unsqueeze(-1).unsqueeze(-1); };
  for (int64_t i = 0; i < t.q.size(2); ++i) {
    if (i % rule.chunk == 0) state.chunk_start = state.memory;
    std::vector<Tensor> leaves;
    for (const Tensor& w : state.chunk_start) leaves.push_back(w.detach().requires_grad_(true));
    Tensor loss = loss_of(rule, leaves, t, i);
    for (int64_t j = i + 1; j < i + rule.window; ++j) loss = loss + loss_of(rule, leaves, t, j);
    const auto gradients = torch::autograd::grad({loss}, leaves);
    for (size_t l = 0; l < leaves.size(); ++l) {
      Tensor step = -at(t.lr, i) * gradients[l];
      if (rule.optimizer == Optimizer::kMomentum) {
        step = state.momentum[l] = at(t.log_momentum.exp(), i) * state.momentum[l] + step;
      } else if (rule.optimizer == Optimizer::kMuon) {
        state.momentum[l] = at(t.log_momentum.exp(), i) * state.momentum[l] + gradients[l];
        step = -at(t.lr, i) * ops::newton_schulz(state.momentum[l], rule.ns_steps);
      }
      state.memory[l] = at(t.log_retain.exp(), i) * state.memory[l] + step;
    }
    outputs.push_back(network(state.memory, t.q.select(2, i), rule.residual));
  }
  return torch::stack(outputs, 2);
}

DeepMemoryTokens random_tokens(const DeepMemoryRule& rule) {
  const auto wide = torch::TensorOptions().dtype(torch::kFloat64);
  const int64_t m = T + rule.window - 1;
  DeepMemoryTokens t;
  t.q = torch::randn({B, H, T, K}, wide);
  t.k = torch::randn({B, H, m, K}, wide) * 0.4;
  t.v = torch::randn({B, H, m, K}, wide);
  t.omega = torch::rand({B, H, m}, wide);
  t.log_retain = torch::rand({B, H, T}, wide).log();
  t.log_momentum = torch::rand({B, H, T}, wide).log();
  t.lr = torch::rand({B, H, T}, wide) * 0.1;
  return t;
}

DeepMemoryState random_state(const DeepMemoryRule& rule, int64_t layers) {
  DeepMemoryState state;
  for (int64_t l = 0; l < layers; ++l) {
    const int64_t in = l == 0 ? K : kHidden, out = l + 1 == layers ? K : kHidden;
    state.memory.push_back(torch::randn({B, H, out, in}, torch::kFloat64) * 0.4);
    if (rule.has_momentum()) state.momentum.push_back(torch::randn({B, H, out, in}, torch::kFloat64) * 0.1);
  }
  state.chunk_start = state.memory;
  return state;
}

void expect_same_state(const DeepMemoryState& got, const DeepMemoryState& want) {
  for (const auto part : {&DeepMemoryState::memory, &DeepMemoryState::momentum, &DeepMemoryState::chunk_start}) {
    ASSERT_EQ((got.*part).size(), (want.*part).size());
    for (size_t l = 0; l < (got.*part).size(); ++l) expect_near((got.*part)[l], (want.*part)[l], 1e-9, "state");
  }
}

class DeepMemoryOp : public testing::TestWithParam<std::tuple<Optimizer, int64_t, int64_t, int64_t>> {
 protected:
  void SetUp() override {
    torch::manual_seed(3);
    const auto [optimizer, chunk, window, layers] = GetParam();
    rule.optimizer = optimizer;
    rule.chunk = chunk;
    rule.window = window;
    rule.residual = layers != 3;
    rule.hebbian = layers == 3;
    rule.mean_loss = window == 2;
    start = random_state(rule, layers);
    tokens = random_tokens(rule);
  }

  DeepMemoryRule rule;
  DeepMemoryState start;
  DeepMemoryTokens tokens;
};

TEST_P(DeepMemoryOp, EqualsTheDefinition) {
  DeepMemoryState want = start, got = start;
  const Tensor y = by_token(rule, tokens, want);
  expect_near(ops::deep_memory(rule, tokens, 0, got), y, 1e-9, "y");
  expect_same_state(got, want);
}

TEST_P(DeepMemoryOp, WhatIsNotRealChangesNothing) {
  // token 4 is nothing: as if it were not there, but for the place in the chunk
  rule.chunk = T + 1;
  rule.window = 1;
  tokens = random_tokens(rule);
  const auto without = [](const Tensor& x) { return torch::cat({x.narrow(2, 0, 4), x.narrow(2, 5, T - 5)}, 2); };
  DeepMemoryTokens fewer = tokens;
  for (Tensor* t : {&fewer.q, &fewer.k, &fewer.v, &fewer.omega, &fewer.log_retain, &fewer.log_momentum, &fewer.lr}) {
    *t = without(*t);
  }
  tokens.real = torch::ones({B, T}, torch::kBool);
  tokens.real.select(1, 4).fill_(false);
  tokens.omega.select(2, 4).fill_(0);
  DeepMemoryState want = start, got = start;
  const Tensor y = ops::deep_memory(rule, fewer, 0, want);
  expect_near(without(ops::deep_memory(rule, tokens, 0, got)), y, 1e-9, "y");
  expect_same_state(got, want);
}

INSTANTIATE_TEST_SUITE_P(Rules, DeepMemoryOp,
                         testing::Combine(testing::Values(Optimizer::kDescent, Optimizer::kMomentum, Optimizer::kMuon),
                                          testing::Values(1, 4, 16), testing::Values(1, 2, 6),
                                          testing::Values(1, 2, 3)));

}  // namespace
}  // namespace seqloom
