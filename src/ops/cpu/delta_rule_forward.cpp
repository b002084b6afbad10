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
  LoadRows(c, head.v.at(p.column), first, left, width, 1, errors);
  FromState(c, width, room.reads, errors);
  SolveUnitTriangular<Triangle::kLower>({c.key_scores, c.rows, 1}, {errors, width}, c.rows, width);
  Gemm<Store::kAdd, Shape::kLowerLeft>({c.query_scores, c.rows, 1}, {errors, width}, {outputs, width}, c.rows, width,
                                       c.rows);
  StoreRows(c, outputs, width, first, std::min(width, left), 1, o.at(p.column));

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

/// A token as the recurrence takes it.
struct Token {
  float *q, *k, *v, *o;  // [padded(keys)] twice, [padded(values)] twice; q times scale
  float decay, beta;
};

/// Columns [column, column + kVectors vectors) of the state through one token.
template <size_t kVectors>
HWY_INLINE void RecurrentColumns(const DeltaHead& head, const float* before, float* after, const Token& token,
                                 size_t column) {
  const Wide factor = hn::Set(kWide, token.decay), beta = hn::Set(kWide, token.beta);
  const auto at = [&](size_t j) { return column + j * kWideLanes; };
  const auto old = [&](size_t d, size_t j) {
    return LoadFirst(kWide, before + d * head.values + at(j), head.values - at(j));
  };
  Wide stored[kVectors], written[kVectors], o[kVectors];
  for (size_t j = 0; j < kVectors; ++j) stored[j] = o[j] = hn::Zero(kWide);
  for (size_t d = 0; d < head.keys; ++d) {
    const Wide key = hn::Set(kWide, token.k[d]);
    for (size_t j = 0; j < kVectors; ++j) {
      stored[j] = hn::MulAdd(key, old(d, j), stored[j]);
    }
  }
  for (size_t j = 0; j < kVectors; ++j) {
    written[j] = hn::Mul(beta, hn::NegMulAdd(factor, stored[j], hn::Load(kWide, token.v + at(j))));
  }
  for (size_t d = 0; d < head.keys; ++d) {
    const Wide key = hn::Set(kWide, token.k[d]), query = hn::Set(kWide, token.q[d]);
    for (size_t j = 0; j < kVectors; ++j) {
      const Wide s = hn::MulAdd(key, written[j], hn::Mul(factor, old(d, j)));
      StoreFirst(kWide, s, after + d * head.values + at(j), head.values - at(j));
      o[j] = hn::MulAdd(query, s, o[j]);
    }
  }
  for (size_t j = 0; j < kVectors; ++j) hn::Store(o[j], kWide, token.o + at(j));
}

void RecurrentHead(const DeltaHead& head, const DeltaForward& out, Token token) {
  constexpr size_t kTogether = 4;
  const ChunkRows one{1, 1};
  const size_t K = padded(head.keys), V = padded(head.values);
  for (size_t t = 0; t < head.tokens; ++t) {
    LoadRows(one, head.q, t, head.keys, K, head.scale, token.q);
    LoadRows(one, head.k, t, head.keys, K, 1, token.k);
    LoadRows(one, head.v, t, head.values, V, 1, token.v);
    token.beta = LoadNumber(head.beta, t);
    const bool gated = head.gate.from != nullptr;
    token.decay = gated ? hn::GetLane(Exp(kWide, hn::Set(kWide, LoadNumber(head.gate, t)))) : 1.0f;
    const float* before = t == 0 ? out.initial : out.last;
    size_t column = 0;
    for (; column + kTogether * kWideLanes <= head.values; column += kTogether * kWideLanes) {
      RecurrentColumns<kTogether>(head, before, out.last, token, column);
    }
    for (; column < head.values; column += kWideLanes) RecurrentColumns<1>(head, before, out.last, token, column);
    StoreRows(one, token.o, V, t, head.values, 1, out.o);
  }
}

void RecurrentHeads(const DeltaHead* heads, const DeltaForward* outs, size_t count) {
  const size_t K = padded(heads->keys), V = padded(heads->values);
  Scratch scratch(2 * K + 2 * V);
  const Token token{scratch.take(K), scratch.take(K), scratch.take(V), scratch.take(V), 0, 0};
  for (size_t h = 0; h < count; ++h) RecurrentHead(heads[h], outs[h], token);
}

void ForwardHeads(const DeltaHead* heads, const DeltaForward* outs, size_t count) {
  const bool few = heads->tokens > 0 && heads->tokens < kFewDeltaTokens;
  if (few && outs->state_step == 0) return RecurrentHeads(heads, outs, count);
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

}  // namespace seqloom::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace seqloom::ops::cpu {

HWY_EXPORT(ForwardHeads);

void delta_forward_heads(const DeltaHead* heads, const DeltaForward* outs, size_t count) {
  HWY_DYNAMIC_DISPATCH(ForwardHeads)(heads, outs, count);
}

}  // namespace seqloom::ops::cpu
#endif  // HWY_ONCE
