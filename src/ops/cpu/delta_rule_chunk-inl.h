// What the forward and the backward pass of the delta rule share: a chunk of tokens of one head and its scores.
// Compiled once for each SIMD target (Highway's foreach_target).
#if defined(SEQLOOM_DELTA_RULE_CHUNK_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef SEQLOOM_DELTA_RULE_CHUNK_INL
#undef SEQLOOM_DELTA_RULE_CHUNK_INL
#else
#define SEQLOOM_DELTA_RULE_CHUNK_INL
#endif

#include "ops/cpu/chunk_rows-inl.h"
#include "ops/cpu/delta_rule_rows.h"
#include "ops/cpu/scratch.h"
#include "ops/cpu/tile_solve-inl.h"

HWY_BEFORE_NAMESPACE();
namespace seqloom::ops::cpu::HWY_NAMESPACE {

// With G the sum of log gates from the chunk's first token, inclusive, and S the state before the chunk, what token i
// is to write under its key, before beta_i, is
//   e_i = v_i - e^{G_i} S^T k_i - sum_{j<i} N_ij beta_j e_j,      N_ij = k_i . k_j e^{G_i - G_j}
// a triangular solve for all i; then
//   o = e^G q S + A (beta e),   A_ij = q_i . k_j e^{G_i - G_j} (j <= i)       S' = e^{G_C} S + k^T (e^{G_C - G} beta e)

/// Between rows that are read down their columns: an odd number of cache lines, so that the rows of one column do not
/// all fall into the same few sets of the cache.
constexpr size_t OddRow(size_t padded_size) {
  return padded_size | kPad;
}
constexpr size_t kTokenRow = OddRow(kDeltaChunk);

/// A chunk of one head, padded by zeros: zero keys, queries, values, betas and gates change nothing.
struct DeltaChunk : ChunkRows {
  size_t K, V, key_row;
  float* both;                       // k, below it q times scale [2 rows, K]
  float* k_turned;                   // [K, rows]
  float *gates, *beta;               // [rows]
  float *from_start, *to_end;        // e^G, e^{G_C - G} [rows]
  float* ratio;                      // e^{G_i - G_j} [rows, rows], 0 above the diagonal
  float *key_scores, *query_scores;  // N, strictly lower, and A [rows, rows], next to each other
  const float* keys() const { return both; }
  const float* queries() const { return both + rows * key_row; }
  float total() const { return from_start[rows - 1]; }  // e^{G_C}
};

inline size_t DeltaChunkFloats(size_t K) {
  return kDeltaChunk * (2 * OddRow(K) + 3 * kDeltaChunk + 4) + K * kTokenRow;
}

inline DeltaChunk MakeDeltaChunk(const DeltaHead& head, Scratch& scratch) {
  DeltaChunk c{};
  c.K = padded(head.keys);
  c.V = padded(head.values);
  c.key_row = OddRow(c.K);
  c.both = scratch.take(2 * kDeltaChunk * c.key_row);
  c.k_turned = scratch.take(c.K * kTokenRow);
  c.ratio = scratch.take(kDeltaChunk * kDeltaChunk);
  c.key_scores = scratch.take(2 * kDeltaChunk * kDeltaChunk);
  for (float** numbers : {&c.gates, &c.beta, &c.from_start, &c.to_end}) *numbers = scratch.take(kDeltaChunk);
  return c;
}

/// to = rows of `from` [rows, columns], each times its factor.
inline void ScaleRows(const float* from, const float* factors, size_t rows, size_t columns, float* to) {
  for (size_t i = 0; i < rows; ++i) {
    const Wide factor = hn::Set(kWide, factors[i]);
    for (size_t at = i * columns; at < (i + 1) * columns; at += kWideLanes) {
      hn::Store(hn::Mul(factor, hn::Load(kWide, from + at)), kWide, to + at);
    }
  }
}

/// Reads the chunk of tokens from `first` on and fills its scores.
inline void PrepareDeltaChunk(const DeltaHead& head, size_t first, DeltaChunk& c) {
  c.tokens = std::min(kDeltaChunk, head.tokens - first);
  c.rows = padded(c.tokens);
  c.query_scores = c.key_scores + c.rows * c.rows;
  LoadRows(c, head.k, first, head.keys, c.key_row, 1, c.both);
  LoadRows(c, head.q, first, head.keys, c.key_row, head.scale, c.both + c.rows * c.key_row);
  LoadNumbers(c, head.beta, first, c.beta);
  const bool gated = head.gate.from != nullptr;
  if (gated) LoadNumbers(c, head.gate, first, c.gates);
  GateRatios<kDeltaChunk>(gated ? c.gates : nullptr, c.rows, c.ratio, c.from_start);
  std::copy_n(c.ratio + (c.rows - 1) * c.rows, c.rows, c.to_end);

  Transpose({c.keys(), c.key_row}, {c.k_turned, kTokenRow}, c.rows, c.K);
  for (const auto& [reader, scores] : {std::pair(c.keys(), c.key_scores), std::pair(c.queries(), c.query_scores)}) {
    Gemm<Store::kSet, Shape::kLowerResult>({reader, c.key_row, 1}, {c.k_turned, kTokenRow}, {scores, c.rows}, c.rows,
                                           c.rows, c.K);
    ClearAbove(scores, c.rows, c.rows);  // what was not computed may be anything, NaN times 0 among it
    Multiply(scores, c.ratio, c.rows * c.rows, scores);
  }
  for (size_t i = 0; i < c.rows; ++i) c.key_scores[i * c.rows + i] = 0;
}

/// [K, V] -> panels, K and V padded with zeros.
inline void LoadState(const DeltaHead& head, const float* from, float* to) {
  const size_t K = padded(head.keys), V = padded(head.values);
  for (size_t column = 0; column < V; column += kDeltaPanel) {
    const DeltaPanel p = delta_panel(column, V);
    const ChunkRows rows{K, head.keys};
    LoadRows(rows, {from + column, head.values}, 0, head.values - column, p.width, 1, to + K * column);
  }
}

inline void StoreState(const DeltaHead& head, const float* from, float* to) {
  const size_t K = padded(head.keys), V = padded(head.values);
  for (size_t column = 0; column < V; column += kDeltaPanel) {
    const DeltaPanel p = delta_panel(column, V);
    const ChunkRows rows{K, head.keys};
    StoreRows(rows, from + K * column, p.width, 0, std::min(p.width, head.values - column), 1,
              {to + column, head.values});
  }
}

}  // namespace seqloom::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
