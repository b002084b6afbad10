#include <utility>

#include "ops/cpu/delta_rule_rows.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/delta_rule_forward.cpp"
#include <hwy/foreach_target.h>
// clang-format off: must follow foreach_target
#include "ops/cpu/delta_rule_chunk-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace seqloom::ops::cpu::HWY_NAMESPACE {

/// What the forward pass works in.
struct ForwardRoom {
  float* reads;    // of a panel: k S, below it q S [2 rows, width]
  float* written;  // of a panel: what is left at the chunk's end of what is written [rows, width]
  float* write;    // beta e^{G_C - G} [rows]
};

/// errors [rows, width], which hold v, less e^G k S; the outputs' part e^G q S, in place.
inline void FromState(const DeltaChunk& c, size_t width, float* reads, float* errors) {
  for (size_t i = 0; i < c.rows; ++i) {
    const Wide decay = hn::Set(kWide, c.from_start[i]);
    for (size_t at = i * width; at < (i + 1) * width; at += kWideLanes) {
      float* o = reads + c.rows * width + at;
      const Wide left = hn::NegMulAdd(decay, hn::Load(kWide, reads + at), hn::Load(kWide, errors + at));
      hn::Store(left, kWide, errors + at);
      hn::Store(hn::Mul(decay, hn::Load(kWide, o)), kWide, o);
    }
  }
}

/// Columns of values and state through a chunk; the scores' columns are times beta.
void ForwardPanel(const DeltaHead& head, const DeltaChunk& c, DeltaPanel p, size_t first, const float* before,
                  float* after, float* errors, const ForwardRoom& room, HeadResult o) {
  const size_t left = head.values - p.column, width = p.width;
  float* outputs = room.reads + c.rows * width;
  Gemm<Store::kSet>({c.both, c.key_row, 1}, {before, width}, {room.reads, width}, 2 * c.rows, width, c.K);
  LoadRows(c, {head.v.from + p.column, head.v.row}, first, left, width, 1, errors);
  FromState(c, width, room.reads, errors);
  SolveUnitTriangular<Triangle::kLower>({c.key_scores, c.rows, 1}, {errors, width}, c.rows, width);
  Gemm<Store::kAdd, Shape::kLowerLeft>({c.query_scores, c.rows, 1}, {errors, width}, {outputs, width}, c.rows, width,
                                       c.rows);
  StoreRows(c, outputs, width, first, std::min(width, left), 1, {o.to + p.column, o.row});

  ScaleRows(errors, room.write, c.rows, width, room.written);
  const Wide total = hn::Set(kWide, c.total());
  for (size_t at = 0; at < c.K * width; at += kWideLanes) {
    hn::Store(hn::Mul(total, hn::Load(kWide, before + at)), kWide, after + at);
  }
  Gemm<Store::kAdd>({c.keys(), 1, c.key_row}, {room.written, width}, {after, width}, c.K, width, c.rows);
}

void ForwardChunk(const DeltaHead& head, const DeltaForward& out, size_t first, DeltaChunk& c,
                  const ForwardRoom& room) {
  PrepareDeltaChunk(head, first, c);
  for (size_t i = 0; i < 2 * c.rows; ++i) {
    Multiply(c.key_scores + i * c.rows, c.beta, c.rows, c.key_scores + i * c.rows);
  }
  Multiply(c.beta, c.to_end, c.rows, room.write);
  const size_t chunk = first / kDeltaChunk;
  float *before = out.states + chunk * out.state_step, *after = out.states + (chunk + 1) * out.state_step;
  float* errors = out.errors + chunk * out.error_step;
  for (size_t column = 0; column < c.V; column += kDeltaPanel) {
    ForwardPanel(head, c, delta_panel(column, c.V), first, before + c.K * column, after + c.K * column,
                 errors + kDeltaChunk * column, room, out.o);
  }
}

void ForwardHeads(const DeltaHead* heads, const DeltaForward* outs, size_t count) {
  Scratch scratch(DeltaChunkFloats(padded(heads->keys)) + (3 * kDeltaPanel + 1) * kDeltaChunk);
  DeltaChunk c = MakeDeltaChunk(*heads, scratch);
  const ForwardRoom room{scratch.take(2 * kDeltaChunk * kDeltaPanel), scratch.take(kDeltaChunk * kDeltaPanel),
                         scratch.take(kDeltaChunk)};
  for (size_t h = 0; h < count; ++h) LoadState(heads[h], outs[h].initial, outs[h].states);
  for (size_t first = 0; first < heads->tokens; first += kDeltaChunk) {
    for (size_t h = 0; h < count; ++h) ForwardChunk(heads[h], outs[h], first, c, room);
  }
  const size_t chunks = hwy::DivCeil(heads->tokens, kDeltaChunk);
  for (size_t h = 0; h < count; ++h) {
    StoreState(heads[h], outs[h].states + chunks * outs[h].state_step, outs[h].last);
  }
}

/// Columns [column, column + kVectors vectors) of the state through one token.
template <size_t kVectors>
HWY_INLINE void RecurrentColumns(const DeltaHead& head, const DeltaForward& out, size_t t, float decay, size_t column) {
  const float *q = head.q.from + t * head.q.row, *k = head.k.from + t * head.k.row, *v = head.v.from + t * head.v.row;
  const Wide factor = hn::Set(kWide, decay), beta = hn::Set(kWide, head.beta.from[t * head.beta.row]);
  const auto at = [&](size_t j) { return column + j * kWideLanes; };
  const auto place = [&](size_t d, size_t j) { return out.last + d * head.values + at(j); };
  const float* before = t == 0 ? out.initial : out.last;
  const auto old = [&](size_t d, size_t j) {
    return LoadFirst(kWide, before + d * head.values + at(j), head.values - at(j));
  };
  Wide stored[kVectors], written[kVectors], o[kVectors];
  for (size_t j = 0; j < kVectors; ++j) stored[j] = o[j] = hn::Zero(kWide);
  for (size_t d = 0; d < head.keys; ++d) {
    const Wide key = hn::Set(kWide, k[d]);
    for (size_t j = 0; j < kVectors; ++j) {
      stored[j] = hn::MulAdd(key, old(d, j), stored[j]);
    }
  }
  for (size_t j = 0; j < kVectors; ++j) {
    written[j] = hn::Mul(beta, hn::NegMulAdd(factor, stored[j], LoadFirst(kWide, v + at(j), head.values - at(j))));
  }
  for (size_t d = 0; d < head.keys; ++d) {
    const Wide key = hn::Set(kWide, k[d]), query = hn::Set(kWide, head.scale * q[d]);
    for (size_t j = 0; j < kVectors; ++j) {
      const Wide s = hn::MulAdd(key, written[j], hn::Mul(factor, old(d, j)));
      StoreFirst(kWide, s, place(d, j), head.values - at(j));
      o[j] = hn::MulAdd(query, s, o[j]);
    }
  }
  for (size_t j = 0; j < kVectors; ++j) {
    StoreFirst(kWide, o[j], out.o.to + t * out.o.row + at(j), head.values - at(j));
  }
}

void RecurrentHead(const DeltaHead& head, const DeltaForward& out) {
  constexpr size_t kTogether = 4;
  for (size_t t = 0; t < head.tokens; ++t) {
    const bool gated = head.gate.from != nullptr;
    const float decay = gated ? hn::GetLane(Exp(kWide, hn::Set(kWide, head.gate.from[t * head.gate.row]))) : 1.0f;
    size_t column = 0;
    for (; column + kTogether * kWideLanes <= head.values; column += kTogether * kWideLanes) {
      RecurrentColumns<kTogether>(head, out, t, decay, column);
    }
    for (; column < head.values; column += kWideLanes) RecurrentColumns<1>(head, out, t, decay, column);
  }
}

void RecurrentHeads(const DeltaHead* heads, const DeltaForward* outs, size_t count) {
  for (size_t h = 0; h < count; ++h) RecurrentHead(heads[h], outs[h]);
}

}  // namespace seqloom::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace seqloom::ops::cpu {

HWY_EXPORT(ForwardHeads);
HWY_EXPORT(RecurrentHeads);

void delta_forward_heads(const DeltaHead* heads, const DeltaForward* outs, size_t count) {
  HWY_DYNAMIC_DISPATCH(ForwardHeads)(heads, outs, count);
}
void delta_recurrent_heads(const DeltaHead* heads, const DeltaForward* outs, size_t count) {
  HWY_DYNAMIC_DISPATCH(RecurrentHeads)(heads, outs, count);
}

}  // namespace seqloom::ops::cpu
#endif  // HWY_ONCE
