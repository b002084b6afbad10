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
  if (out.checkpoints != nullptr) std::copy_n(out.state, K * V, out.checkpoints + first / kGlaChunk * K * V);
  LoadChunk(head, first, c);
  PrepareChunk(head, c, nullptr);
  Gemm<Store::kSet, Shape::kLowerLeft>({c.scores, c.rows, 1}, {c.v, V}, {o, V}, c.rows, V, c.rows);
  Gemm<Store::kAdd>({c.q_in, K, 1}, {out.state, V}, {o, V}, c.rows, V, K);
  StoreRows(c, o, V, first, head.values, 1, out.o);
  DecayState(c, out.state);
  Gemm<Store::kAdd>({c.k_out, 1, K}, {c.v, V}, {out.state, V}, K, V, c.rows);
}

void ForwardHeads(const GlaHead* heads, const GlaForward* outs, size_t count) {
  const size_t K = padded(heads->keys), V = padded(heads->values);
  Scratch scratch(ChunkFloats(K, V) + kGlaChunk * V);
  GlaChunk c = MakeChunk(heads->keys, heads->values, scratch);
  float* o = scratch.take(kGlaChunk * V);
  for (size_t first = 0; first < heads->tokens; first += kGlaChunk) {
    for (size_t h = 0; h < count; ++h) ForwardChunk(heads[h], outs[h], first, c, o);
  }
  for (size_t h = 0; h < count && outs[h].checkpoints != nullptr; ++h) {
    std::copy_n(outs[h].state, K * V, outs[h].checkpoints + hwy::DivCeil(heads->tokens, kGlaChunk) * K * V);
  }
}

void RecurrentHead(const GlaHead& head, const GlaForward& out) {
  const size_t V = padded(head.values);
  for (size_t t = 0; t < head.tokens; ++t) {
    const float *q = head.q.from + t * head.q.row, *k = head.k.from + t * head.k.row, *v = head.v.from + t * head.v.row;
    const float* gate = head.gate.from == nullptr ? nullptr : head.gate.from + t * head.gate.row;
    HWY_ALIGN float decay[kPad];
    for (size_t column = 0; column < head.values; column += kWideLanes) {
      const Wide value = LoadFirst(kWide, v + column, head.values - column);
      Wide o = hn::Zero(kWide);
      for (size_t d = 0; d < head.keys; ++d) {
        if (gate != nullptr && d % kWideLanes == 0) {  // one exponential serves as many keys as there are lanes
          const Wide gates = head.gate_a_channel ? LoadFirst(kWide, gate + d, head.keys - d) : hn::Set(kWide, *gate);
          hn::Store(Exp(kWide, gates), kWide, decay);
        }
        float* place = out.state + d * V + column;
        Wide s = hn::Load(kWide, place);
        if (gate != nullptr) s = hn::Mul(s, hn::Set(kWide, decay[d % kWideLanes]));
        s = hn::MulAdd(hn::Set(kWide, k[d]), value, s);
        hn::Store(s, kWide, place);
        o = hn::MulAdd(hn::Set(kWide, head.scale * q[d]), s, o);
      }
      StoreFirst(kWide, o, out.o.to + t * out.o.row + column, head.values - column);
    }
  }
}

void RecurrentHeads(const GlaHead* heads, const GlaForward* outs, size_t count) {
  for (size_t h = 0; h < count; ++h) RecurrentHead(heads[h], outs[h]);
}

}  // namespace seqloom::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace seqloom::ops::cpu {

HWY_EXPORT(ForwardHeads);
HWY_EXPORT(RecurrentHeads);

void gla_forward_heads(const GlaHead* heads, const GlaForward* outs, size_t count) {
  HWY_DYNAMIC_DISPATCH(ForwardHeads)(heads, outs, count);
}
void gla_recurrent_heads(const GlaHead* heads, const GlaForward* outs, size_t count) {
  HWY_DYNAMIC_DISPATCH(RecurrentHeads)(heads, outs, count);
}

}  // namespace seqloom::ops::cpu
#endif  // HWY_ONCE
