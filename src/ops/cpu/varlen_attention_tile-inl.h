// What the forward and the backward pass of the packed attention share: score tiles with queries in the lanes, so that
// neither a softmax nor its gradient sums across lanes, and keys and values are read as they lie. Compiled once for
// each SIMD target (Highway's foreach_target).
#if defined(SEQLOOM_VARLEN_ATTENTION_TILE_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef SEQLOOM_VARLEN_ATTENTION_TILE_INL
#undef SEQLOOM_VARLEN_ATTENTION_TILE_INL
#else
#define SEQLOOM_VARLEN_ATTENTION_TILE_INL
#endif

#include <hwy/highway.h>

#include <limits>

#include "ops/cpu/tile_product-inl.h"
#include "ops/cpu/varlen_attention_block.h"
#include "ops/cpu/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace seqloom::ops::cpu::HWY_NAMESPACE {

constexpr float kHidden = -std::numeric_limits<float>::infinity();
/// Rows that are multiplied at a time, so that at the edges of the mask little is computed in vain.
constexpr int64_t kStrip = 4 * kMicroRows;

inline int64_t FloorColumns(int64_t i) {
  return i / kColumns * kColumns;
}
inline int64_t CeilColumns(int64_t i) {
  return FloorColumns(i + kColumns - 1);
}

/// factor * from [rows, padded] -> to [padded, kQueries], zeros for rows that are not there.
inline void Transpose(const float* from, int64_t rows, int64_t padded, float factor, float* to) {
#if HWY_TARGET == HWY_SCALAR
  for (int64_t i = 0; i < CeilColumns(rows); ++i) {
    for (int64_t c = 0; c < padded; ++c) to[c * kQueries + i] = i < rows ? factor * from[i * padded + c] : 0;
  }
#else
  const hn::FixedTag<float, 4> d;
  const auto scale = hn::Set(d, factor);
  for (int64_t i = 0; i < CeilColumns(rows); i += 4) {
    const auto row = [&](int64_t r, int64_t c) {
      return i + r < rows ? hn::Mul(scale, hn::LoadU(d, from + (i + r) * padded + c)) : hn::Zero(d);
    };
    for (int64_t c = 0; c < padded; c += 4) {
      const auto r0 = row(0, c), r1 = row(1, c), r2 = row(2, c), r3 = row(3, c);
      const auto a = hn::InterleaveLower(d, r0, r1), b = hn::InterleaveLower(d, r2, r3);
      const auto e = hn::InterleaveUpper(d, r0, r1), f = hn::InterleaveUpper(d, r2, r3);
      float* column = to + c * kQueries + i;
      hn::StoreU(hn::ConcatLowerLower(d, b, a), d, column);
      hn::StoreU(hn::ConcatUpperUpper(d, b, a), d, column + kQueries);
      hn::StoreU(hn::ConcatLowerLower(d, f, e), d, column + 2 * kQueries);
      hn::StoreU(hn::ConcatUpperUpper(d, f, e), d, column + 3 * kQueries);
    }
  }
#endif
}

/// The columns of a score tile that any of the keys [first, last) reaches, in whole vectors.
struct ColumnRange {
  int64_t begin, end;
};
inline ColumnRange ColumnsOf(const QueryBlock& b, int64_t first, int64_t last) {
  return {FloorColumns(b.first_row(first)), CeilColumns(b.end_row(last - 1))};
}

/// Hides in a tile's columns what rows must not see of the keys [first, last).
inline void Hide(const QueryBlock& b, int64_t first, int64_t last, const ColumnRange& columns, float* scores) {
  const hn::RebindToSigned<decltype(kTileTag)> di;
  for (int64_t j = first; j < last; ++j, scores += kQueries) {
    const bool real = b.keep == nullptr || b.keep[j];
    const int64_t begin = real ? b.first_row(j) : kQueries, end = b.windowed() ? b.end_row(j) : kQueries;
    if (begin <= columns.begin && end >= columns.end) continue;
    const auto low = hn::Set(di, static_cast<int32_t>(begin)), high = hn::Set(di, static_cast<int32_t>(end));
    for (int64_t i = columns.begin; i < columns.end; i += kTileLanes) {
      const auto row = hn::Iota(di, static_cast<int32_t>(i));
      const auto hidden = hn::Or(hn::Lt(row, low), hn::Not(hn::Lt(row, high)));
      const auto score = hn::Load(kTileTag, scores + i);
      hn::Store(hn::IfThenElse(hn::RebindMask(kTileTag, hidden), hn::Set(kTileTag, kHidden), score), kTileTag,
                scores + i);
    }
  }
}

/// Keys of a tile, at most.
constexpr int64_t kTileKeys = 2 * kStrip;

/// Adds the bias: along a key's row its entries lie as the queries do.
inline void AddBias(const QueryBlock& b, int64_t first, int64_t last, const ColumnRange& columns, float* scores) {
  HWY_ALIGN float strip[kQueries + kTileKeys];
  const int64_t low = b.reach + b.place + columns.begin - (last - 1), most = 2 * b.reach;
  const int64_t count = columns.end - columns.begin + last - first - 1;
  const float* from = strip;
  if (low >= 0 && low + count <= most + 1) {
    from = b.bias + low;
  } else {
    for (int64_t x = 0; x < count; ++x) strip[x] = b.bias[HWY_MIN(HWY_MAX(low + x, int64_t{0}), most)];
  }
  for (int64_t j = first; j < last; ++j, scores += kQueries) {
    const float* row = from + last - 1 - j - columns.begin;
    for (int64_t i = columns.begin; i < columns.end; i += kTileLanes) {
      hn::Store(hn::Add(hn::Load(kTileTag, scores + i), hn::LoadU(kTileTag, row + i)), kTileTag, scores + i);
    }
  }
}

/// c tanh(s / c) = c - 2 c / (1 + e^{2 s / c}), all in exponents of 2.
inline void CapScores(float cap, int64_t keys, const ColumnRange& columns, float* scores) {
  const TileVector c = hn::Set(kTileTag, cap), one = hn::Set(kTileTag, 1.0f);
  const TileVector slope = hn::Set(kTileTag, 2 * kLog2E / cap), twice = hn::Set(kTileTag, 2 * cap);
  for (int64_t j = 0; j < keys; ++j, scores += kQueries) {
    for (int64_t i = columns.begin; i < columns.end; i += kTileLanes) {
      const TileVector e = Exp2(kTileTag, hn::Mul(slope, hn::Load(kTileTag, scores + i)));
      hn::Store(hn::Sub(c, hn::Div(twice, hn::Add(one, e))), kTileTag, scores + i);
    }
  }
}

/// scores [last - first, kQueries] of the keys [first, last), in the given columns; queries [padded, kQueries].
inline void Scores(const QueryBlock& b, const float* queries, int64_t first, int64_t last, const ColumnRange& columns,
                   float* scores) {
  TileProduct({b.k + first * b.padded, static_cast<size_t>(b.padded), 1}, queries + columns.begin, kQueries,
              scores + columns.begin, kQueries, last - first, b.width, columns.end - columns.begin, /*add=*/false);
  if (b.bias != nullptr) AddBias(b, first, last, columns, scores);
  if (b.softcap > 0) CapScores(b.softcap, last - first, columns, scores);
  Hide(b, first, last, columns, scores);
}

}  // namespace seqloom::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
