#include <utility>

#include "ops/cpu/gated_linear_attention_rows.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/gated_linear_attention_backward.cpp"
#include <hwy/foreach_target.h>
// clang-format off: must follow foreach_target
#include "ops/cpu/gated_linear_attention_chunk-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace seqloom::ops::cpu::HWY_NAMESPACE {

/// Gradients of a chunk and room for what they are made from.
struct ChunkGradients {
  float *d_o, *dv;       // [rows, V]
  float *dq, *dk;        // [rows, K]
  float* d_scores;       // [rows, rows]
  float* v_turned;       // [V, rows]
  float* state_turned;   // [V, K]
  float* product;        // [rows, K]
  float* through_state;  // [K]: sum_v S dS at the chunk's end
  float* diagonal;       // [rows]: the diagonal of d_scores
};

inline size_t GradientFloats(size_t K, size_t V) {
  return kGlaChunk * (3 * V + 3 * K + kGlaChunk + 1) + V * K + K;
}

inline ChunkGradients MakeGradients(size_t K, size_t V, Scratch& scratch) {
  ChunkGradients g{};
  g.d_o = scratch.take(kGlaChunk * V);
  g.dv = scratch.take(kGlaChunk * V);
  g.dq = scratch.take(kGlaChunk * K);
  g.dk = scratch.take(kGlaChunk * K);
  g.d_scores = scratch.take(kGlaChunk * kGlaChunk);
  g.v_turned = scratch.take(V * kGlaChunk);
  g.state_turned = scratch.take(V * K);
  g.product = scratch.take(kGlaChunk * K);
  g.through_state = scratch.take(K);
  g.diagonal = scratch.take(kGlaChunk);
  return g;
}

/// Adds to dq and dk what comes through the states before and behind the chunk; null: that state, or its gradient, is
/// 0.
void GradientsThroughStates(const GlaChunk& c, const ChunkGradients& g, const float* before, const float* d_state) {
  if (before != nullptr) {
    Transpose({before, c.V}, {g.state_turned, c.K}, c.K, c.V);
    Gemm<Store::kSet>({g.d_o, c.V, 1}, {g.state_turned, c.K}, {g.product, c.K}, c.rows, c.K, c.V);
    MultiplyAdd(g.product, c.from_start, c.rows * c.K, g.dq);
  }
  if (d_state == nullptr) return;
  Transpose({d_state, c.V}, {g.state_turned, c.K}, c.K, c.V);
  Gemm<Store::kSet>({c.v, c.V, 1}, {g.state_turned, c.K}, {g.product, c.K}, c.rows, c.K, c.V);
  MultiplyAdd(g.product, c.to_end, c.rows * c.K, g.dk);
}

/// Every factor e^{G} that a token's query is multiplied by has the gates up to it, its key's factor has them with the
/// other sign: dG_i = q_i dq_i - k_i dk_i, and a gate's gradient is the sum of those from its token on. What lies
/// behind the chunk sees the gates through the state alone. Nothing passes a gate whose e^g is 0: there the sum begins
/// anew.
void StoreGateGradient(const GlaHead& head, const GlaChunk& c, const ChunkGradients& g, size_t first, HeadResult to) {
  float sum = 0;
  for (size_t d = 0; d < head.keys; ++d) sum += g.through_state[d];
  for (size_t i = c.tokens; i-- > 0;) {
    const size_t at = i * c.K;
    const size_t row = (first + i) * to.row;
    Wide all = hn::Zero(kWide);
    for (size_t d = 0; d < c.K; d += kWideLanes) {
      const Wide q = hn::Mul(hn::Load(kWide, c.q + at + d), hn::Load(kWide, g.dq + at + d));
      const Wide own = hn::NegMulAdd(hn::Load(kWide, c.k + at + d), hn::Load(kWide, g.dk + at + d), q);
      all = hn::Add(all, own);
      if (!head.gate_a_channel) continue;
      const auto reset = hn::Lt(hn::Load(kWide, c.gates + at + d), hn::Set(kWide, kReset));
      const Wide running = hn::IfThenZeroElse(reset, hn::Add(own, hn::Load(kWide, g.through_state + d)));
      hn::Store(running, kWide, g.through_state + d);
      if (d < head.keys) StoreLanes(running, to, row + d, head.keys - d);
    }
    if (head.gate_a_channel) continue;
    sum = c.gates[i] < kReset ? 0 : sum + hn::GetLane(hn::SumOfLanes(kWide, all));
    StoreLanes(hn::Set(kWide, sum), to, row, 1);
  }
}

/// What a token reads of itself passes no gate. It is added last: in dG_i it would cancel, but for its rounding, which
/// behind strong gates is larger than all the rest.
void AddDiagonal(const GlaChunk& c, const ChunkGradients& g) {
  for (size_t i = 0; i < c.rows; ++i) {
    const Wide own = hn::Set(kWide, g.diagonal[i]);
    for (size_t at = i * c.K; at < (i + 1) * c.K; at += kWideLanes) {
      const Wide q = hn::Load(kWide, c.q + at), k = hn::Load(kWide, c.k + at);
      hn::Store(hn::MulAdd(own, k, hn::Load(kWide, g.dq + at)), kWide, g.dq + at);
      hn::Store(hn::MulAdd(own, q, hn::Load(kWide, g.dk + at)), kWide, g.dk + at);
    }
  }
}

/// The states around a chunk and their gradient.
struct StatesAround {
  const float *before, *after;  // before: null where it is zero
  float* gradient;              // of the state behind the chunk, which becomes that of the state before it
  bool known, wanted;           // whether the one is not zero, whether the other is asked for
};

void BackwardChunk(const GlaHead& head, const GlaBackward& out, const StatesAround& s, size_t first, GlaChunk& c,
                   const ChunkGradients& g) {
  LoadChunk(head, first, c);
  LoadRows(c, out.d_o, first, head.values, c.V, 1, g.d_o);
  std::fill_n(g.through_state, c.K, 0.0f);
  if (s.known) RowProducts(s.after, s.gradient, c.K, c.V, g.through_state);

  Transpose({c.v, c.V}, {g.v_turned, c.rows}, c.rows, c.V);
  Gemm<Store::kSet, Shape::kLowerResult>({g.d_o, c.V, 1}, {g.v_turned, c.rows}, {g.d_scores, c.rows}, c.rows, c.rows,
                                         c.V);
  ClearAbove(g.d_scores, c.rows, c.rows);
  for (size_t i = 0; i < c.rows; ++i) g.diagonal[i] = std::exchange(g.d_scores[i * c.rows + i], 0.0f);
  std::fill_n(g.dq, c.rows * c.K, 0.0f);
  std::fill_n(g.dk, c.rows * c.K, 0.0f);
  const ScoreGradients through_scores{g.d_scores, g.dq, g.dk, g.product};
  PrepareChunk(head, c, &through_scores);
  GradientsThroughStates(c, g, s.before, s.known ? s.gradient : nullptr);

  Gemm<Store::kSet, Shape::kUpperLeft>({c.scores, 1, c.rows}, {g.d_o, c.V}, {g.dv, c.V}, c.rows, c.V, c.rows);
  if (s.known) Gemm<Store::kAdd>({c.k_out, c.K, 1}, {s.gradient, c.V}, {g.dv, c.V}, c.rows, c.V, c.K);
  StoreRows(c, g.dv, c.V, first, head.values, 1, out.dv);
  if (head.gate.from != nullptr) StoreGateGradient(head, c, g, first, out.d_gate);
  AddDiagonal(c, g);
  StoreRows(c, g.dq, c.K, first, head.keys, head.scale, out.dq);
  StoreRows(c, g.dk, c.K, first, head.keys, 1, out.dk);

  if (!s.wanted) return;
  if (s.known) {
    DecayState(c, s.gradient);
  } else {
    std::fill_n(s.gradient, c.K * c.V, 0.0f);
  }
  Gemm<Store::kAdd>({c.q_in, 1, c.K}, {g.d_o, c.V}, {s.gradient, c.V}, c.K, c.V, c.rows);
}

void BackwardHeads(const GlaHead* heads, const GlaBackward* outs, size_t count) {
  const size_t K = padded(heads->keys), V = padded(heads->values);
  const size_t chunks = hwy::DivCeil(heads->tokens, kGlaChunk), size = K * V;
  Scratch scratch(ChunkFloats(K, V) + GradientFloats(K, V) + count * size);
  GlaChunk c = MakeChunk(heads->keys, heads->values, scratch);
  const ChunkGradients g = MakeGradients(K, V, scratch);
  float* own = scratch.take(count * size);  // for the gradients of states that nobody else sees
  for (size_t chunk = chunks; chunk-- > 0;) {
    for (size_t h = 0; h < count; ++h) {
      const GlaBackward& out = outs[h];
      const bool last = chunk + 1 == chunks, given = out.d_state != nullptr;
      const StatesAround s{chunk == 0 ? out.initial : out.checkpoints + (chunk - 1) * size,
                           last ? out.last : out.checkpoints + chunk * size, given ? out.d_state : own + h * size,
                           given || !last, chunk > 0 || out.with_initial};
      BackwardChunk(heads[h], out, s, chunk * kGlaChunk, c, g);
    }
  }
}

}  // namespace seqloom::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace seqloom::ops::cpu {

HWY_EXPORT(BackwardHeads);

void gla_backward_heads(const GlaHead* heads, const GlaBackward* outs, size_t count) {
  HWY_DYNAMIC_DISPATCH(BackwardHeads)(heads, outs, count);
}

}  // namespace seqloom::ops::cpu
#endif  // HWY_ONCE
