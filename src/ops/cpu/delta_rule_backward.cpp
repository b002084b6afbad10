#include <utility>

#include "ops/cpu/delta_rule_rows.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/delta_rule_backward.cpp"
#include <hwy/foreach_target.h>
// clang-format off: must follow foreach_target
#include "ops/cpu/delta_rule_chunk-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace seqloom::ops::cpu::HWY_NAMESPACE {

// With d the gradient of what follows, D = beta e what is written and z the gradient of beta e's right side,
//   (I + (diag(beta) N)^T) z = A^T do + e^{G_C - G} k dS'         dv = beta z         d beta_i = z_i . e_i
//   dN = -dv D^T, dA = do D^T (both lower)       dS = e^{G_C} dS' + (e^G q)^T do - (e^G k)^T dv
// and keys and queries get what comes through N, A, S and S'. Keys as readers (through e^G k S and N's rows) are kept
// apart from keys as writers, for the gates' sake.

/// Gradients of a chunk and room for what they are made from.
struct DeltaChunkGradients {
  float *both, *writer;  // of k as a reader, below it of q [2 rows, key_row]; of k as a writer [rows, key_row]
  float* scores;         // of N, below it of A [2 rows, rows]
  float* diagonal;       // of A's diagonal [rows]
  float* beta;           // [rows]
  float through_state;   // S' . dS'
  // of a panel: -dv, below it do [2 rows, width]; D; D turned [width, rows]; z; a state turned [width, key_row]
  float *reads, *written, *written_turned, *z, *state_turned;
  float *minus_beta, *products;  // [rows]
};

inline size_t GradientFloats(size_t K) {
  return kDeltaChunk * (3 * OddRow(K) + 2 * kDeltaChunk + 4) + kDeltaPanel * (4 * kDeltaChunk + kTokenRow + OddRow(K));
}

inline DeltaChunkGradients MakeGradients(const DeltaChunk& c, Scratch& scratch) {
  DeltaChunkGradients g{};
  g.both = scratch.take(2 * kDeltaChunk * c.key_row);
  g.writer = scratch.take(kDeltaChunk * c.key_row);
  g.scores = scratch.take(2 * kDeltaChunk * kDeltaChunk);
  g.reads = scratch.take(2 * kDeltaChunk * kDeltaPanel);
  g.written = scratch.take(kDeltaChunk * kDeltaPanel);
  g.written_turned = scratch.take(kDeltaPanel * kTokenRow);
  g.z = scratch.take(kDeltaChunk * kDeltaPanel);
  g.state_turned = scratch.take(kDeltaPanel * c.key_row);
  for (float** numbers : {&g.diagonal, &g.beta, &g.minus_beta, &g.products}) *numbers = scratch.take(kDeltaChunk);
  return g;
}

/// A panel of a chunk: its columns, and its parts of the states around the chunk and of the errors.
struct PanelStates {
  DeltaPanel panel;
  const float *before, *after, *errors;
  float* d_state;
};

/// z, dv and beta's gradient; leaves D in g.written, and -dv and do in g.reads.
void ThroughErrors(const DeltaHead& head, const DeltaChunk& c, const PanelStates& s, size_t first,
                   const DeltaBackward& out, const DeltaChunkGradients& g) {
  const auto [column, width] = s.panel;
  const size_t left = head.values - column;
  float *minus_dv = g.reads, *d_o = g.reads + c.rows * width;
  LoadRows(c, out.d_o.at(column), first, left, width, 1, d_o);
  ScaleRows(s.errors, c.beta, c.rows, width, g.written);

  Gemm<Store::kSet>({c.keys(), c.key_row, 1}, {s.d_state, width}, {g.z, width}, c.rows, width, c.K);
  ScaleRows(g.z, c.to_end, c.rows, width, g.z);
  Gemm<Store::kAdd, Shape::kUpperLeft>({c.query_scores, 1, c.rows}, {d_o, width}, {g.z, width}, c.rows, width, c.rows);
  SolveUnitTriangular<Triangle::kUpper>({c.key_scores, 1, c.rows}, {g.z, width}, c.rows, width);

  RowProducts(g.z, s.errors, c.rows, width, g.products);
  for (size_t i = 0; i < c.rows; ++i) g.beta[i] += g.products[i];
  ScaleRows(g.z, g.minus_beta, c.rows, width, minus_dv);
  StoreRows(c, minus_dv, width, first, std::min(width, left), -1, out.dv.at(column));
}

/// What D, do and dv say about scores, states, keys and queries.
void ThroughStates(const DeltaChunk& c, const PanelStates& s, bool gated, DeltaChunkGradients& g) {
  const size_t width = s.panel.width;
  Transpose({g.written, width}, {g.written_turned, kTokenRow}, c.rows, width);
  for (const size_t row : {size_t{0}, c.rows}) {
    Gemm<Store::kAdd, Shape::kLowerResult>({g.reads + row * width, width, 1}, {g.written_turned, kTokenRow},
                                           {g.scores + row * c.rows, c.rows}, c.rows, c.rows, width);
  }
  for (const size_t row : {size_t{0}, c.rows}) {
    ScaleRows(g.reads + row * width, c.from_start, c.rows, width, g.reads + row * width);
  }
  ScaleRows(g.written, c.to_end, c.rows, width, g.written);
  const Result turned{g.state_turned, c.key_row};
  Transpose({s.before, width}, turned, c.K, width);
  Gemm<Store::kAdd>({g.reads, width, 1}, {turned.to, turned.row}, {g.both, c.key_row}, 2 * c.rows, c.K, width);
  Transpose({s.d_state, width}, turned, c.K, width);
  Gemm<Store::kAdd>({g.written, width, 1}, {turned.to, turned.row}, {g.writer, c.key_row}, c.rows, c.K, width);

  Wide sum = hn::Zero(kWide);
  const Wide total = hn::Set(kWide, c.total());
  for (size_t at = 0; gated && at < c.K * width; at += kWideLanes) {
    const Wide d = hn::Load(kWide, s.d_state + at);
    sum = hn::MulAdd(d, hn::Load(kWide, s.after + at), sum);
    hn::Store(hn::Mul(total, d), kWide, s.d_state + at);
  }
  g.through_state += hn::GetLane(hn::SumOfLanes(kWide, sum));
  Gemm<Store::kAdd>({c.both, 1, c.key_row}, {g.reads, width}, {s.d_state, width}, c.K, width, 2 * c.rows);
}

/// Keys and queries through their scores, but for A's diagonal.
void ThroughScores(const DeltaChunk& c, const DeltaChunkGradients& g) {
  for (const size_t row : {size_t{0}, c.rows}) {
    float* scores = g.scores + row * c.rows;
    ClearAbove(scores, c.rows, c.rows);
    for (size_t i = 0; i < c.rows; ++i) g.diagonal[i] = std::exchange(scores[i * c.rows + i], 0.0f);
    Multiply(scores, c.ratio, c.rows * c.rows, scores);
    Gemm<Store::kAdd, Shape::kLowerLeft>({scores, c.rows, 1}, {c.keys(), c.key_row},
                                         {g.both + row * c.key_row, c.key_row}, c.rows, c.K, c.rows);
    Gemm<Store::kAdd, Shape::kUpperLeft>({scores, 1, c.rows}, {c.both + row * c.key_row, c.key_row},
                                         {g.writer, c.key_row}, c.rows, c.K, c.rows);
  }
}

/// Every factor e^{G} that a token's query or key reads with has the gates up to it, that which its key writes with has
/// them with the other sign: dG_i = q_i dq_i + k_i (dk_i as a reader) - k_i (dk_i as a writer), and a gate's gradient
/// is the sum of those from its token on. What lies behind the chunk sees the gates through the state alone. Nothing
/// passes a gate whose e^g is 0: there the sum begins anew.
void StoreGateGradient(const DeltaChunk& c, const DeltaChunkGradients& g, size_t first, HeadResult to) {
  const size_t row = c.key_row;
  float sum = g.through_state;
  for (size_t i = c.tokens; i-- > 0;) {
    Wide all = hn::Zero(kWide);
    for (size_t d = 0; d < c.K; d += kWideLanes) {
      const size_t key = i * row + d, query = (c.rows + i) * row + d;
      const Wide as_key = hn::Sub(hn::Load(kWide, g.both + key), hn::Load(kWide, g.writer + key));
      all = hn::MulAdd(hn::Load(kWide, c.both + key), as_key, all);
      all = hn::MulAdd(hn::Load(kWide, c.both + query), hn::Load(kWide, g.both + query), all);
    }
    sum = c.gates[i] < kReset ? 0 : sum + hn::GetLane(hn::SumOfLanes(kWide, all));
    StoreLanes(hn::Set(kWide, sum), to, (first + i) * to.row, 1);
  }
}

/// dq and dk, into g.both and g.writer, with what a token reads of itself: it passes no gate, and in dG_i it would
/// cancel but for its rounding, so that it comes last.
void AddDiagonal(const DeltaChunk& c, const DeltaChunkGradients& g) {
  for (size_t i = 0; i < c.rows; ++i) {
    const Wide own = hn::Set(kWide, g.diagonal[i]);
    for (size_t d = 0; d < c.K; d += kWideLanes) {
      const size_t key = i * c.key_row + d, query = (c.rows + i) * c.key_row + d;
      const Wide k = hn::Load(kWide, c.both + key), q = hn::Load(kWide, c.both + query);
      hn::Store(hn::MulAdd(own, k, hn::Load(kWide, g.both + query)), kWide, g.both + query);
      const Wide dk = hn::Add(hn::Load(kWide, g.both + key), hn::Load(kWide, g.writer + key));
      hn::Store(hn::MulAdd(own, q, dk), kWide, g.writer + key);
    }
  }
}

void BackwardChunk(const DeltaHead& head, const DeltaBackward& out, size_t first, DeltaChunk& c,
                   DeltaChunkGradients& g) {
  PrepareDeltaChunk(head, first, c);
  ScaleRows(c.key_scores, c.beta, c.rows, c.rows, c.key_scores);
  for (size_t i = 0; i < c.rows; ++i) g.minus_beta[i] = -c.beta[i];
  std::fill_n(g.both, 2 * c.rows * c.key_row, 0.0f);
  std::fill_n(g.writer, c.rows * c.key_row, 0.0f);
  std::fill_n(g.scores, 2 * c.rows * c.rows, 0.0f);
  std::fill_n(g.beta, c.rows, 0.0f);
  g.through_state = 0;
  const bool gated = head.gate.from != nullptr;
  const float* before = out.states + first / kDeltaChunk * out.state_step;
  const float* errors = out.errors + first / kDeltaChunk * out.error_step;
  for (size_t column = 0; column < c.V; column += kDeltaPanel) {
    const float* own = before + c.K * column;
    const PanelStates s{delta_panel(column, c.V), own, own + out.state_step, errors + kDeltaChunk * column,
                        out.d_state + c.K * column};
    ThroughErrors(head, c, s, first, out, g);
    ThroughStates(c, s, gated, g);
  }
  ThroughScores(c, g);
  if (gated) StoreGateGradient(c, g, first, out.d_gate);
  AddDiagonal(c, g);
  StoreRows(c, g.both + c.rows * c.key_row, c.key_row, first, head.keys, head.scale, out.dq);
  StoreRows(c, g.writer, c.key_row, first, head.keys, 1, out.dk);
  for (size_t t = 0; t < c.tokens; ++t) {
    StoreLanes(hn::Set(kWide, g.beta[t]), out.d_beta, (first + t) * out.d_beta.row, 1);
  }
}

void BackwardHeads(const DeltaHead* heads, const DeltaBackward* outs, size_t count) {
  const size_t K = padded(heads->keys);
  Scratch scratch(DeltaChunkFloats(K) + GradientFloats(K));
  DeltaChunk c = MakeDeltaChunk(*heads, scratch);
  DeltaChunkGradients g = MakeGradients(c, scratch);
  for (size_t h = 0; h < count; ++h) LoadState(heads[h], outs[h].d_last, outs[h].d_state);
  for (size_t chunk = hwy::DivCeil(heads->tokens, kDeltaChunk); chunk-- > 0;) {
    for (size_t h = 0; h < count; ++h) BackwardChunk(heads[h], outs[h], chunk * kDeltaChunk, c, g);
  }
  for (size_t h = 0; h < count; ++h) StoreState(heads[h], outs[h].d_state, outs[h].d_initial);
}

}  // namespace seqloom::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace seqloom::ops::cpu {

HWY_EXPORT(BackwardHeads);

void delta_backward_heads(const DeltaHead* heads, const DeltaBackward* outs, size_t count) {
  HWY_DYNAMIC_DISPATCH(BackwardHeads)(heads, outs, count);
}

}  // namespace seqloom::ops::cpu
#endif  // HWY_ONCE
