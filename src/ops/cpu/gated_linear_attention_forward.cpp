#include "ops/cpu/gated_linear_attention_rows.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/gated_linear_attention_forward.cpp"
#include <hwy/foreach_target.h>
// clang-format off: must follow foreach_target
#include "ops/cpu/gated_linear_attention_chunk-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace seqloom::ops::cpu::HWY_NAMESPACE {

void ForwardHead(const GlaHead& head, const GlaForward& out) {
  const size_t K = padded(head.keys), V = padded(head.values);
  Scratch scratch(ChunkFloats(K, V) + kGlaChunk * V);
  GlaChunk c = MakeChunk(head.keys, head.values, scratch);
  float *o = scratch.take(kGlaChunk * V), *checkpoint = out.checkpoints;
  const auto keep_state = [&] {
    if (checkpoint != nullptr) checkpoint = std::copy(out.state, out.state + K * V, checkpoint);
  };
  for (size_t first = 0; first < head.tokens; first += kGlaChunk) {
    keep_state();
    LoadChunk(head, first, c);
    PrepareChunk(head, c, nullptr);
    Gemm<Store::kSet, Shape::kLowerLeft>({c.scores, c.rows, 1}, {c.v, V}, {o, V}, c.rows, V, c.rows);
    Gemm<Store::kAdd>({c.q_in, K, 1}, {out.state, V}, {o, V}, c.rows, V, K);
    StoreRows(c, o, V, first, head.values, 1, out.o);
    DecayState(c, out.state);
    Gemm<Store::kAdd>({c.k_out, 1, K}, {c.v, V}, {out.state, V}, K, V, c.rows);
  }
  keep_state();
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

}  // namespace seqloom::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace seqloom::ops::cpu {

HWY_EXPORT(ForwardHead);
HWY_EXPORT(RecurrentHead);

void gla_forward_head(const GlaHead& head, const GlaForward& out) {
  HWY_DYNAMIC_DISPATCH(ForwardHead)(head, out);
}
void gla_recurrent_head(const GlaHead& head, const GlaForward& out) {
  HWY_DYNAMIC_DISPATCH(RecurrentHead)(head, out);
}

}  // namespace seqloom::ops::cpu
#endif  // HWY_ONCE
