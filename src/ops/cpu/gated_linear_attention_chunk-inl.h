// What the forward and the backward pass of gated linear attention share: a chunk of tokens of one head, its decay
// factors and its scores. Compiled once for each SIMD target (Highway's foreach_target).
#if defined(SEQLOOM_GATED_LINEAR_ATTENTION_CHUNK_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef SEQLOOM_GATED_LINEAR_ATTENTION_CHUNK_INL
#undef SEQLOOM_GATED_LINEAR_ATTENTION_CHUNK_INL
#else
#define SEQLOOM_GATED_LINEAR_ATTENTION_CHUNK_INL
#endif

#include "ops/cpu/chunk_rows-inl.h"
#include "ops/cpu/gated_linear_attention_rows.h"
#include "ops/cpu/scratch.h"

HWY_BEFORE_NAMESPACE();
namespace seqloom::ops::cpu::HWY_NAMESPACE {

// With G the sum of log gates from the chunk's first token, inclusive:
//   A_ij = sum_d q_id k_jd e^{G_id - G_jd}  (j <= i)        o = A v + (q e^G) S        S' = e^{G_C} S + (k e^{G_C -
//   G})^T v
// No factor may overflow, and none may lose what is near behind a strong gate. So exponents are sums that begin at the
// near end, never differences of long sums, and products are taken relative to a point between their rows.

/// Rows that share a point of reference where gates are strong.
constexpr size_t kNearRows = 16;
/// A block whose gates add up to more than this may take a point in its middle: e^{+-30} keeps full precision.
constexpr float kMild = -60.0f;

/// A chunk of one head, padded by zeros: zero keys, values and log gates change nothing.
struct GlaChunk : ChunkRows {
  size_t K, V;
  float *q, *k, *v;            // [rows, K], [rows, K], [rows, V]; q times scale
  float* gates;                // [rows, K], or [rows] with one gate a token
  float *from_start, *to_end;  // e^G and e^{G_C - G} [rows, K]
  float *q_in, *k_out;         // q and k times these
  float* scores;               // A [rows, rows], 0 above the diagonal
  float* ratio;                // e^{G_i - G_j} [rows, rows], 0 above, with one gate a token
  // of a block of rows: local sums of gates, factors relative to the block's point, and q, k times these
  float *sums, *q_factor, *k_factor, *q_near, *k_near;  // [rows, K]
  float* turned;                                        // k_near or k transposed [K, rows]
};

inline size_t ChunkFloats(size_t K, size_t V) {
  return kGlaChunk * (13 * K + V + 2 * kGlaChunk);
}

inline GlaChunk MakeChunk(size_t keys, size_t values, Scratch& scratch) {
  GlaChunk c{};
  c.K = padded(keys);
  c.V = padded(values);
  c.v = scratch.take(kGlaChunk * c.V);
  c.scores = scratch.take(kGlaChunk * kGlaChunk);
  c.ratio = scratch.take(kGlaChunk * kGlaChunk);
  for (float** rows : {&c.q, &c.k, &c.gates, &c.from_start, &c.to_end, &c.q_in, &c.k_out, &c.sums, &c.q_factor,
                       &c.k_factor, &c.q_near, &c.k_near, &c.turned}) {
    *rows = scratch.take(kGlaChunk * c.K);
  }
  return c;
}

/// One gate a token: the ratios and the factors of both ends.
inline void HeadGateFactors(const GlaChunk& c, bool gated) {
  HWY_ALIGN float from_start[kGlaChunk];
  GateRatios<kGlaChunk>(gated ? c.gates : nullptr, c.rows, c.ratio, from_start);
  const float* last = c.ratio + (c.rows - 1) * c.rows;
  for (size_t i = 0; i < c.rows; ++i) {
    const Wide start = hn::Set(kWide, from_start[i]), end = hn::Set(kWide, last[i]);
    for (size_t at = i * c.K; at < (i + 1) * c.K; at += kWideLanes) {
      hn::Store(start, kWide, c.from_start + at);
      hn::Store(end, kWide, c.to_end + at);
    }
  }
}

/// Sums of the gates of rows [begin, begin + size), inclusive, into c.sums. Whether they are mild; a NaN is not.
inline bool LocalSums(const GlaChunk& c, size_t begin, size_t size) {
  const Wide limit = hn::Set(kWide, kMild);
  auto mild = hn::Eq(limit, limit);
  for (size_t d = 0; d < c.K; d += kWideLanes) {
    Wide sum = hn::Zero(kWide);
    for (size_t i = begin; i < begin + size; ++i) {
      sum = hn::Add(sum, hn::Load(kWide, c.gates + i * c.K + d));
      hn::Store(sum, kWide, c.sums + i * c.K + d);
    }
    mild = hn::And(mild, hn::Ge(sum, limit));
  }
  return hn::AllTrue(kWide, mild);
}

/// q_factor = e^{G - G_mid}, k_factor = e^{G_mid - G} of a mild block from its local sums; q_near, k_near, turned.
inline void NearFactors(const GlaChunk& c, size_t begin, size_t size) {
  const float* last = c.sums + (begin + size - 1) * c.K;
  for (size_t i = begin; i < begin + size; ++i) {
    for (size_t d = 0; d < c.K; d += kWideLanes) {
      const size_t at = i * c.K + d;
      const Wide middle = hn::Mul(hn::Load(kWide, last + d), hn::Set(kWide, 0.5f));
      const Wide e = Exp(kWide, hn::Sub(hn::Load(kWide, c.sums + at), middle)),
                 inverse = hn::Div(hn::Set(kWide, 1.0f), e);
      hn::Store(e, kWide, c.q_factor + at);
      hn::Store(inverse, kWide, c.k_factor + at);
      hn::Store(hn::Mul(e, hn::Load(kWide, c.q + at)), kWide, c.q_near + at);
      hn::Store(hn::Mul(inverse, hn::Load(kWide, c.k + at)), kWide, c.k_near + at);
    }
  }
  Transpose({c.k_near + begin * c.K, c.K}, {c.turned + begin, c.rows}, size, c.K);
}

/// Relative to the row before the block: q_factor = e^{sum from the block's first row} of its rows, k_factor =
/// e^{sum to the block} of all rows before it; q_near, k_near, turned. Nothing exceeds 1.
inline void FarFactors(const GlaChunk& c, size_t begin, size_t size) {
  for (size_t i = begin; i < begin + size; ++i) {
    for (size_t at = i * c.K; at < (i + 1) * c.K; at += kWideLanes) {
      const Wide e = Exp(kWide, hn::Load(kWide, c.sums + at));
      hn::Store(e, kWide, c.q_factor + at);
      hn::Store(hn::Mul(e, hn::Load(kWide, c.q + at)), kWide, c.q_near + at);
    }
  }
  for (size_t d = 0; d < c.K; d += kWideLanes) {
    Wide sum = hn::Zero(kWide);
    for (size_t j = begin; j-- > 0;) {
      const size_t at = j * c.K + d;
      const Wide e = Exp(kWide, sum);
      hn::Store(e, kWide, c.k_factor + at);
      hn::Store(hn::Mul(e, hn::Load(kWide, c.k + at)), kWide, c.k_near + at);
      sum = hn::Add(sum, hn::Load(kWide, c.gates + at));
    }
  }
  Transpose({c.k_near, c.K}, {c.turned, c.rows}, begin, c.K);
}

/// e^G and e^{G_C - G} of the chunk: from the factors of a chunk that is one mild block, or one by one.
inline void EndFactors(const GlaChunk& c, bool mild) {
  const Wide half = hn::Set(kWide, 0.5f);
  for (size_t d = 0; d < c.K; d += kWideLanes) {
    Wide forth = hn::Zero(kWide), back = hn::Zero(kWide);
    const Wide middle = Exp(kWide, hn::Mul(half, hn::Load(kWide, c.sums + (c.rows - 1) * c.K + d)));
    for (size_t i = 0; i < c.rows; ++i) {
      const size_t at = i * c.K + d, mirrored = (c.rows - 1 - i) * c.K + d;
      if (mild) {  // G_C - G_mid = G_mid
        hn::Store(hn::Mul(middle, hn::Load(kWide, c.q_factor + at)), kWide, c.from_start + at);
        hn::Store(hn::Mul(middle, hn::Load(kWide, c.k_factor + at)), kWide, c.to_end + at);
        continue;
      }
      forth = hn::Add(forth, hn::Load(kWide, c.gates + at));
      hn::Store(Exp(kWide, forth), kWide, c.from_start + at);
      hn::Store(Exp(kWide, back), kWide, c.to_end + mirrored);
      back = hn::Add(back, hn::Load(kWide, c.gates + mirrored));
    }
  }
}

/// What the backward pass adds while it goes through the blocks: dq and dk [rows, K] through the scores' gradient
/// [rows, rows], which is 0 above the diagonal.
struct ScoreGradients {
  const float* scores;
  float *dq, *dk;
  float* product;  // [rows, K]
};

/// Rows [i, i + m) of dq through columns [j, j + n) of the scores' gradient and back, all relative to the block's
/// point.
inline void BlockGradients(const GlaChunk& c, const ScoreGradients& r, size_t i, size_t m, size_t j, size_t n) {
  const float* scores = r.scores + i * c.rows + j;
  Gemm<Store::kSet>({scores, c.rows, 1}, {c.k_near + j * c.K, c.K}, {r.product, c.K}, m, c.K, n);
  MultiplyAdd(r.product, c.q_factor + i * c.K, m * c.K, r.dq + i * c.K);
  Gemm<Store::kSet>({scores, 1, c.rows}, {c.q_near + i * c.K, c.K}, {r.product, c.K}, n, c.K, m);
  MultiplyAdd(r.product, c.k_factor + j * c.K, n * c.K, r.dk + j * c.K);
}

/// Scores of a block with itself where its gates are strong: every pair's decay is summed from its own key on.
inline void PairScores(const GlaChunk& c, size_t begin, size_t size, const ScoreGradients* r) {
  for (size_t j = begin; j < begin + size; ++j) {
    float* sum = c.sums + begin * c.K;  // one row of it
    for (size_t i = j; i < begin + size; ++i) {
      Wide score = hn::Zero(kWide);
      for (size_t d = 0; d < c.K; d += kWideLanes) {
        const Wide gates = hn::Load(kWide, c.gates + i * c.K + d);
        const Wide exponent = i == j ? hn::Zero(kWide) : hn::Add(hn::Load(kWide, sum + d), gates);
        hn::Store(exponent, kWide, sum + d);
        const Wide decay = Exp(kWide, exponent);
        const Wide q = hn::Mul(decay, hn::Load(kWide, c.q + i * c.K + d)), k = hn::Load(kWide, c.k + j * c.K + d);
        score = hn::MulAdd(q, k, score);
        if (r == nullptr) continue;
        const Wide gradient = hn::Set(kWide, r->scores[i * c.rows + j]);
        float *dq = r->dq + i * c.K + d, *dk = r->dk + j * c.K + d;
        hn::Store(hn::MulAdd(hn::Mul(gradient, decay), k, hn::Load(kWide, dq)), kWide, dq);
        hn::Store(hn::MulAdd(gradient, q, hn::Load(kWide, dk)), kWide, dk);
      }
      c.scores[i * c.rows + j] = hn::GetLane(hn::SumOfLanes(kWide, score));
    }
  }
}

/// Scores of the block [begin, begin + size), whose local sums are known, with all rows up to its end.
inline void BlockScores(const GlaChunk& c, size_t begin, size_t size, bool mild, const ScoreGradients* r) {
  float* scores = c.scores + begin * c.rows;
  if (begin > 0) {
    FarFactors(c, begin, size);
    Gemm<Store::kSet>({c.q_near + begin * c.K, c.K, 1}, {c.turned, c.rows}, {scores, c.rows}, size, begin, c.K);
    if (r != nullptr) BlockGradients(c, *r, begin, size, 0, begin);
  }
  if (mild) {
    NearFactors(c, begin, size);
    Gemm<Store::kSet, Shape::kLowerResult>({c.q_near + begin * c.K, c.K, 1}, {c.turned + begin, c.rows},
                                           {scores + begin, c.rows}, size, size, c.K);
    if (r != nullptr) BlockGradients(c, *r, begin, size, begin, size);
  } else {
    PairScores(c, begin, size, r);
  }
  ClearAbove(scores + begin, c.rows, size);
  for (size_t i = 0; i < size; ++i) std::fill(scores + i * c.rows + begin + size, scores + (i + 1) * c.rows, 0.0f);
}

inline void ChannelGateScores(const GlaChunk& c, const ScoreGradients* r) {
  if (LocalSums(c, 0, c.rows)) {
    BlockScores(c, 0, c.rows, true, r);
    EndFactors(c, true);
    return;
  }
  for (size_t begin = 0; begin < c.rows; begin += kNearRows) {
    const bool mild = LocalSums(c, begin, kNearRows);
    BlockScores(c, begin, kNearRows, mild, r);
  }
  EndFactors(c, false);
}

/// The scores, and through them dq and dk where r is given; r's scores are the gradient of q k^T times the ratio.
inline void HeadGateScores(const GlaChunk& c, bool gated, const ScoreGradients* r) {
  HeadGateFactors(c, gated);
  Transpose({c.k, c.K}, {c.turned, c.rows}, c.rows, c.K);
  Gemm<Store::kSet, Shape::kLowerResult>({c.q, c.K, 1}, {c.turned, c.rows}, {c.scores, c.rows}, c.rows, c.rows, c.K);
  ClearAbove(c.scores, c.rows, c.rows);  // what was not computed may be anything, NaN times 0 among it
  Multiply(c.scores, c.ratio, c.rows * c.rows, c.scores);
  if (r == nullptr) return;
  Multiply(r->scores, c.ratio, c.rows * c.rows, c.ratio);
  Gemm<Store::kAdd, Shape::kLowerLeft>({c.ratio, c.rows, 1}, {c.k, c.K}, {r->dq, c.K}, c.rows, c.K, c.rows);
  Gemm<Store::kAdd, Shape::kUpperLeft>({c.ratio, 1, c.rows}, {c.q, c.K}, {r->dk, c.K}, c.rows, c.K, c.rows);
}

/// Reads the chunk of tokens from `first` on.
inline void LoadChunk(const GlaHead& head, size_t first, GlaChunk& c) {
  c.tokens = std::min(kGlaChunk, head.tokens - first);
  c.rows = padded(c.tokens);
  LoadRows(c, head.q, first, head.keys, c.K, head.scale, c.q);
  LoadRows(c, head.k, first, head.keys, c.K, 1, c.k);
  LoadRows(c, head.v, first, head.values, c.V, 1, c.v);
  if (head.gate.from == nullptr) return;
  if (head.gate_a_channel) {
    LoadRows(c, head.gate, first, head.keys, c.K, 1, c.gates);
  } else {
    LoadNumbers(c, head.gate, first, c.gates);
  }
}

/// Fills scores, from_start, to_end, q_in and k_out of a chunk that was read.
inline void PrepareChunk(const GlaHead& head, const GlaChunk& c, const ScoreGradients* r) {
  if (head.gate_a_channel) {
    ChannelGateScores(c, r);
  } else {
    HeadGateScores(c, head.gate.from != nullptr, r);
  }
  Multiply(c.q, c.from_start, c.rows * c.K, c.q_in);
  Multiply(c.k, c.to_end, c.rows * c.K, c.k_out);
}

/// state [K, V] times e^{G_C} of its row.
inline void DecayState(const GlaChunk& c, float* state) {
  for (size_t d = 0; d < c.K; ++d) {
    const Wide total = hn::Set(kWide, c.from_start[(c.rows - 1) * c.K + d]);
    for (size_t at = d * c.V; at < (d + 1) * c.V; at += kWideLanes) {
      hn::Store(hn::Mul(total, hn::Load(kWide, state + at)), kWide, state + at);
    }
  }
}

}  // namespace seqloom::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
