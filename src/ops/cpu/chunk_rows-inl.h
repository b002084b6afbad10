// Rows of a chunk of tokens, for the kernels that turn a recurrence into products of small matrices. Compiled once for
// each SIMD target (Highway's foreach_target).
#if defined(SEQLOOM_CHUNK_ROWS_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef SEQLOOM_CHUNK_ROWS_INL
#undef SEQLOOM_CHUNK_ROWS_INL
#else
#define SEQLOOM_CHUNK_ROWS_INL
#endif

#include "ops/cpu/head_rows.h"
#include "ops/cpu/tile_gemm-inl.h"
#include "ops/cpu/vector_io-inl.h"
#include "ops/cpu/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace seqloom::ops::cpu::HWY_NAMESPACE {

/// Below this log gate e^g is 0.
constexpr float kReset = -104;

template <typename T>
inline void LoadRowsOf(const ChunkRows& c, const T* from, size_t row, size_t width, size_t columns, float factor,
                       float* to) {
  const Wide scale = hn::Set(kWide, factor);
  for (size_t t = 0; t < c.rows; ++t) {
    for (size_t d = 0; d < columns; d += kWideLanes) {
      const bool inside = t < c.tokens && d < width;
      const Wide x = inside ? LoadFirst(kWide, from + t * row + d, width - d) : hn::Zero(kWide);
      hn::Store(hn::Mul(x, scale), kWide, to + t * columns + d);
    }
  }
}

/// Tokens [first, first + c.tokens) of a head's rows, times `factor`; zeros to the right of `width` and below.
inline void LoadRows(const ChunkRows& c, HeadRows from, size_t first, size_t width, size_t columns, float factor,
                     float* to) {
  const void* begin = from.at(first * from.row).from;
  from.narrow ? LoadRowsOf(c, static_cast<const Bfloat16*>(begin), from.row, width, columns, factor, to)
              : LoadRowsOf(c, static_cast<const float*>(begin), from.row, width, columns, factor, to);
}

/// The first `count` lanes of x, to element `at`.
HWY_INLINE void StoreLanes(Wide x, HeadResult to, size_t at, size_t count) {
  to.narrow ? StoreFirst(kWide, x, static_cast<Bfloat16*>(to.to) + at, count)
            : StoreFirst(kWide, x, static_cast<float*>(to.to) + at, count);
}

inline void StoreRows(const ChunkRows& c, const float* from, size_t columns, size_t first, size_t width, float factor,
                      HeadResult to) {
  const Wide scale = hn::Set(kWide, factor);
  for (size_t t = 0; t < c.tokens; ++t) {
    for (size_t d = 0; d < width; d += kWideLanes) {
      const Wide x = hn::Mul(hn::Load(kWide, from + t * columns + d), scale);
      StoreLanes(x, to, (first + t) * to.row + d, width - d);
    }
  }
}

/// The number of token t, of rows that have one each.
HWY_INLINE float LoadNumber(HeadRows from, size_t t) {
  return hn::GetLane(from.narrow ? LoadFirst(kWide, static_cast<const Bfloat16*>(from.from) + t * from.row, 1)
                                 : hn::Set(kWide, static_cast<const float*>(from.from)[t * from.row]));
}

/// One number a token; zeros behind the last one.
inline void LoadNumbers(const ChunkRows& c, HeadRows from, size_t first, float* to) {
  for (size_t t = 0; t < c.rows; ++t) to[t] = t < c.tokens ? LoadNumber(from, first + t) : 0;
}

/// to = a b.
HWY_INLINE void Multiply(const float* a, const float* b, size_t size, float* to) {
  for (size_t i = 0; i < size; i += kWideLanes) {
    hn::Store(hn::Mul(hn::Load(kWide, a + i), hn::Load(kWide, b + i)), kWide, to + i);
  }
}

/// to += a b.
HWY_INLINE void MultiplyAdd(const float* a, const float* b, size_t size, float* to) {
  for (size_t i = 0; i < size; i += kWideLanes) {
    const Wide sum = hn::MulAdd(hn::Load(kWide, a + i), hn::Load(kWide, b + i), hn::Load(kWide, to + i));
    hn::Store(sum, kWide, to + i);
  }
}

/// to [rows] = sum over columns of a b, [rows, columns].
inline void RowProducts(const float* a, const float* b, size_t rows, size_t columns, float* to) {
  for (size_t i = 0; i < rows; ++i) {
    Wide sum = hn::Zero(kWide);
    for (size_t at = i * columns; at < (i + 1) * columns; at += kWideLanes) {
      sum = hn::MulAdd(hn::Load(kWide, a + at), hn::Load(kWide, b + at), sum);
    }
    to[i] = hn::GetLane(hn::SumOfLanes(kWide, sum));
  }
}

inline void ClearAbove(float* square, size_t row, size_t size) {
  for (size_t i = 0; i < size; ++i) std::fill(square + i * row + i + 1, square + i * row + size, 0.0f);
}

/// ratio_ij = e^{G_i - G_j} [rows, rows], 0 above the diagonal, and from_start = e^G [rows], G the sums of one log gate
/// a row; all gates 0 where `gates` is null. Exponents begin at the near end, each row's is the row before with its
/// gate added: a difference of long sums would lose what is near behind a strong gate.
template <size_t kMostRows>
void GateRatios(const float* gates, size_t rows, float* ratio, float* from_start) {
  HWY_ALIGN float exponent[kMostRows] = {};
  float sum = 0;
  for (size_t i = 0; i < rows; ++i) {
    float* row = ratio + i * rows;
    from_start[i] = 1;
    if (gates == nullptr) {
      std::fill(row, row + i + 1, 1.0f);
    } else {
      from_start[i] = sum += gates[i];
      for (size_t j = 0; j <= i; j += kWideLanes) {
        const auto before = hn::FirstN(kWide, std::min(i - j, kWideLanes));
        const Wide old = hn::Load(kWide, exponent + j);
        const Wide e = hn::IfThenElse(before, hn::Add(old, hn::Set(kWide, gates[i])), old);
        hn::Store(e, kWide, exponent + j);
        hn::Store(Exp(kWide, e), kWide, row + j);
      }
    }
    std::fill(row + i + 1, row + rows, 0.0f);
  }
  if (gates == nullptr) return;
  for (size_t i = 0; i < rows; i += kWideLanes) {
    hn::Store(Exp(kWide, hn::Load(kWide, from_start + i)), kWide, from_start + i);
  }
}

}  // namespace seqloom::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
