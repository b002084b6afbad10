// Products of small float matrices that stay in the cache, for the kernels that work in chunks of tokens. Compiled once
// for each SIMD target (Highway's foreach_target).
#if defined(SEQLOOM_TILE_GEMM_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef SEQLOOM_TILE_GEMM_INL
#undef SEQLOOM_TILE_GEMM_INL
#else
#define SEQLOOM_TILE_GEMM_INL
#endif

#include <hwy/highway.h>

#include <algorithm>

HWY_BEFORE_NAMESPACE();
namespace seqloom::ops::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

/// Rows, columns and depths of tiles are padded with zeros to multiples of this, so that no loop here has a rest.
constexpr size_t kPad = 16;

constexpr size_t padded(size_t size) {
  return (size + kPad - 1) / kPad * kPad;
}

const hn::CappedTag<float, kPad> kWide;
using Wide = hn::Vec<decltype(kWide)>;
constexpr size_t kWideLanes = hn::MaxLanes(kWide);

// A register block: its sums, a row of B and one number of A fill the registers of the target.
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_SSE4 || HWY_TARGET == HWY_SSSE3
constexpr size_t kRegisterRows = 4, kRegisterColumns = 2;
#else
constexpr size_t kRegisterRows = 8, kRegisterColumns = 2;
#endif

/// The left factor: element (i, p) is from[i * row + p * column], so that a transpose is a view.
struct Left {
  const float* from;
  size_t row, column;
};

/// A row-major matrix whose rows are `row` floats apart.
struct Right {
  const float* from;
  size_t row;
};
struct Result {
  float* to;
  size_t row;
};

enum class Store { kSet, kAdd, kSubtract };

/// What is known to be zero in the left factor, and what is not wanted of the result; both to a block of rows.
enum class Shape {
  kFull,
  kLowerLeft,    // element (i, p) is 0 for p > i
  kUpperLeft,    // element (i, p) is 0 for p < i
  kLowerResult,  // element (i, j) is not wanted for j > i
};

template <Store kStore, size_t kColumns>
HWY_INLINE void GemmBlock(Left a, Right b, Result c, size_t begin, size_t end) {
  Wide sum[kRegisterRows][kColumns];
  for (size_t i = 0; i < kRegisterRows; ++i) {
    for (size_t j = 0; j < kColumns; ++j) {
      sum[i][j] = kStore == Store::kSet ? hn::Zero(kWide) : hn::LoadU(kWide, c.to + i * c.row + j * kWideLanes);
    }
  }
  for (size_t p = begin; p < end; ++p) {
    Wide right[kColumns];
    for (size_t j = 0; j < kColumns; ++j) right[j] = hn::LoadU(kWide, b.from + p * b.row + j * kWideLanes);
    for (size_t i = 0; i < kRegisterRows; ++i) {
      const Wide left = hn::Set(kWide, a.from[i * a.row + p * a.column]);
      for (size_t j = 0; j < kColumns; ++j) {
        sum[i][j] = kStore == Store::kSubtract ? hn::NegMulAdd(left, right[j], sum[i][j])
                                               : hn::MulAdd(left, right[j], sum[i][j]);
      }
    }
  }
  for (size_t i = 0; i < kRegisterRows; ++i) {
    for (size_t j = 0; j < kColumns; ++j) hn::StoreU(sum[i][j], kWide, c.to + i * c.row + j * kWideLanes);
  }
}

/// C [m, n] = A [m, k] B [k, n], added to C or subtracted from it if so asked. m and n are multiples of kPad.
template <Store kStore, Shape kShape = Shape::kFull>
void Gemm(Left a, Right b, Result c, size_t m, size_t n, size_t k) {
  constexpr size_t kBlock = kRegisterColumns * kWideLanes;
  // columns outside: a panel of B stays in the first cache while all rows of A pass by
  for (size_t j = 0; j < n; j += kBlock) {
    const size_t first = kShape == Shape::kLowerResult ? j / kRegisterRows * kRegisterRows : 0;
    for (size_t i = first; i < m; i += kRegisterRows) {
      const size_t begin = kShape == Shape::kUpperLeft ? std::min(i, k) : 0;
      const size_t end = kShape == Shape::kLowerLeft ? std::min(i + kRegisterRows, k) : k;
      const Left left{a.from + i * a.row, a.row, a.column};
      const Right right{b.from + j, b.row};
      const Result result{c.to + i * c.row + j, c.row};
      if (j + kBlock <= n) {
        GemmBlock<kStore, kRegisterColumns>(left, right, result, begin, end);
      } else {
        GemmBlock<kStore, 1>(left, right, result, begin, end);
      }
    }
  }
}

/// from [rows, columns] -> to [columns, rows], both multiples of 4.
inline void Transpose(Right from, Result to, size_t rows, size_t columns) {
#if HWY_TARGET == HWY_SCALAR
  for (size_t i = 0; i < rows; ++i) {
    for (size_t j = 0; j < columns; ++j) to.to[j * to.row + i] = from.from[i * from.row + j];
  }
#else
  const hn::FixedTag<float, 4> d;
  for (size_t i = 0; i < rows; i += 4) {
    for (size_t j = 0; j < columns; j += 4) {
      const float* source = from.from + i * from.row + j;
      const auto a0 = hn::LoadU(d, source), a1 = hn::LoadU(d, source + from.row);
      const auto a2 = hn::LoadU(d, source + 2 * from.row), a3 = hn::LoadU(d, source + 3 * from.row);
      const auto b0 = hn::InterleaveLower(d, a0, a2), b1 = hn::InterleaveLower(d, a1, a3);
      const auto b2 = hn::InterleaveUpper(d, a0, a2), b3 = hn::InterleaveUpper(d, a1, a3);
      float* place = to.to + j * to.row + i;
      hn::StoreU(hn::InterleaveLower(d, b0, b1), d, place);
      hn::StoreU(hn::InterleaveUpper(d, b0, b1), d, place + to.row);
      hn::StoreU(hn::InterleaveLower(d, b2, b3), d, place + 2 * to.row);
      hn::StoreU(hn::InterleaveUpper(d, b2, b3), d, place + 3 * to.row);
    }
  }
#endif
}

}  // namespace seqloom::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
