#include "ops/cpu/gated_linear_attention_rows.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/gated_linear_attention_forward.cpp"
#include <hwy/foreach_target.h>
// clang-format off: must follow foreach_target
#include "ops/cpu/gated_linear_attention_chunk-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace seqloom::ops::cpu::HWY_NAMESPACE {

void ForwardChunk(const GlaHead& head, const GlaForward& out, size_t first, GlaChunk& c, float* o) {
  const size_t K = c.K, V = c.V;
  if (out.keep && first > 0) std::copy_n(out.state, K * V, out.checkpoints + (first / kGlaChunk - 1) * K * V);
  LoadChunk(head, first, c);
  PrepareChunk(head, c, nullptr);
  Gemm<Store::kSet, Shape::kLowerLeft>({c.scores, c.rows, 1}, {c.v, V}, {o, V}, c.rows, V, c.rows);
  Gemm<Store::kAdd>({c.q_in, K, 1}, {out.state, V}, {o, V}, c.rows, V, K);
  StoreRows(c, o, V, first, head.values, 1, out.o);
  DecayState(c, out.state);
  Gemm<Store::kAdd>({c.k_out, 1, K}, {c.v, V}, {out.state, V}, K, V, c.rows);
}

/// A token as the recurrence takes it.
struct Token {
  float *q, *k, *decay;  // [padded(keys)]; q times scale, decay e^gate
  float *v, *o;          // [padded(values)]
};

void LoadToken(const GlaHead& head, size_t t, const Token& token) {
  const ChunkRows one{1, 1};
  const size_t K = padded(head.keys);
  LoadRows(one, head.q, t, head.keys, K, head.scale, token.q);
  LoadRows(one, head.k, t, head.keys, K, 1, token.k);
  LoadRows(one, head.v, t, head.values, padded(head.values), 1, token.v);
  if (head.gate.from == nullptr) {
    std::fill_n(token.decay, K, 1.0f);
    return;
  }
  if (head.gate_a_channel) {
    LoadRows(one, head.gate, t, head.keys, K, 1, token.decay);
  } else {
    std::fill_n(token.decay, K, LoadNumber(head.gate, t));
  }
  for (size_t d = 0; d < K; d += kWideLanes) {
    hn::Store(Exp(kWide, hn::Load(kWide, token.decay + d)), kWide, token.decay + d);
  }
}

void RecurrentHead(const GlaHead& head, const GlaForward& out, const Token& token) {
  const size_t V = padded(head.values);
  for (size_t t = 0; t < head.tokens; ++t) {
    LoadToken(head, t, token);
    for (size_t column = 0; column < V; column += kWideLanes) {
      const Wide value = hn::Load(kWide, token.v + column);
      Wide o = hn::Zero(kWide);
      for (size_t d = 0; d < head.keys; ++d) {
        float* place = out.state + d * V + column;
        const Wide kept = hn::Mul(hn::Load(kWide, place), hn::Set(kWide, token.decay[d]));
        const Wide s = hn::MulAdd(hn::Set(kWide, token.k[d]), value, kept);
        hn::Store(s, kWide, place);
        o = hn::MulAdd(hn::Set(kWide, token.q[d]), s, o);
      }
      hn::Store(o, kWide, token.o + column);
    }
    StoreRows(ChunkRows{1, 1}, token.o, V, t, head.values, 1, out.o);
  }
}

void RecurrentHeads(const GlaHead* heads, const GlaForward* outs, size_t count) {
  const size_t K = padded(heads->keys), V = padded(heads->values);
  Scratch scratch(3 * K + 2 * V);
  const Token token{scratch.take(K), scratch.take(K), scratch.take(K), scratch.take(V), scratch.take(V)};
  for (size_t h = 0; h < count; ++h) RecurrentHead(heads[h], outs[h], token);
}

void ForwardHeads(const GlaHead* heads, const GlaForward* outs, size_t count) {
  const size_t K = padded(heads->keys), V = padded(heads->values);
  for (size_t h = 0; h < count && outs->from_nothing; ++h) std::fill_n(outs[h].state, K * V, 0.0f);
  if (heads->tokens < kFewTokens) return RecurrentHeads(heads, outs, count);
  Scratch scratch(ChunkFloats(K, V) + kGlaChunk * V);
  GlaChunk c = MakeChunk(heads->keys, heads->values, scratch);
  float* o = scratch.take(kGlaChunk * V);
  for (size_t first = 0; first < heads->tokens; first += kGlaChunk) {
    for (size_t h = 0; h < count; ++h) ForwardChunk(heads[h], outs[h], first, c, o);
  }
}

}  // namespace seqloom::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace seqloom::ops::cpu {

HWY_EXPORT(ForwardHeads);

void gla_forward_heads(const GlaHead* heads, const GlaForward* outs, size_t count) {
  HWY_DYNAMIC_DISPATCH(ForwardHeads)(heads, outs, count);
}

}  // namespace seqloom::ops::cpu
#endif  // HWY_ONCE
