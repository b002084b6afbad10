// Triangular solves of small float matrices that stay in the cache, beside their products (tile_gemm-inl.h). Compiled
// once for each SIMD target (Highway's foreach_target).
#if defined(SEQLOOM_TILE_SOLVE_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef SEQLOOM_TILE_SOLVE_INL
#undef SEQLOOM_TILE_SOLVE_INL
#else
#define SEQLOOM_TILE_SOLVE_INL
#endif

#include "ops/cpu/tile_gemm-inl.h"

HWY_BEFORE_NAMESPACE();
namespace seqloom::ops::cpu::HWY_NAMESPACE {

enum class Triangle { kLower, kUpper };

/// A register block of rows against its own triangle: each row is taken from those that come after it.
template <Triangle kTriangle, size_t kColumns>
HWY_INLINE void SubstituteBlock(Left a, Result x) {
  constexpr auto row = [](size_t step) { return kTriangle == Triangle::kLower ? step : kRegisterRows - 1 - step; };
  Wide sum[kRegisterRows][kColumns];
  for (size_t i = 0; i < kRegisterRows; ++i) {
    for (size_t j = 0; j < kColumns; ++j) sum[i][j] = hn::LoadU(kWide, x.to + row(i) * x.row + j * kWideLanes);
  }
  for (size_t p = 0; p < kRegisterRows; ++p) {
    for (size_t i = p + 1; i < kRegisterRows; ++i) {
      const Wide left = hn::Set(kWide, a.from[row(i) * a.row + row(p) * a.column]);
      for (size_t j = 0; j < kColumns; ++j) sum[i][j] = hn::NegMulAdd(left, sum[p][j], sum[i][j]);
    }
  }
  for (size_t i = 1; i < kRegisterRows; ++i) {
    for (size_t j = 0; j < kColumns; ++j) hn::StoreU(sum[i][j], kWide, x.to + row(i) * x.row + j * kWideLanes);
  }
}

/// Columns of x, a register block wide: by blocks of rows, each less the product with those that are solved.
template <Triangle kTriangle, size_t kColumns>
HWY_INLINE void SolveColumns(Left a, Result x, size_t rows) {
  for (size_t done = 0; done < rows; done += kRegisterRows) {
    const bool lower = kTriangle == Triangle::kLower;
    const size_t i = lower ? done : rows - kRegisterRows - done;
    const Result own{x.to + i * x.row, x.row};
    GemmBlock<Store::kSubtract, kColumns>({a.from + i * a.row, a.row, a.column}, {x.to, x.row}, own,
                                          lower ? 0 : i + kRegisterRows, lower ? i : rows);
    SubstituteBlock<kTriangle, kColumns>({a.from + i * a.row + i * a.column, a.row, a.column}, own);
  }
}

/// x <- (I + A)^{-1} x for A [rows, rows], of which only what lies strictly below (kLower) or above (kUpper) the
/// diagonal is read; x [rows, columns]. rows and columns are multiples of kPad.
template <Triangle kTriangle>
void SolveUnitTriangular(Left a, Result x, size_t rows, size_t columns) {
  constexpr size_t kBlock = kRegisterColumns * kWideLanes;
  for (size_t j = 0; j < columns; j += kBlock) {
    if (j + kBlock <= columns) {
      SolveColumns<kTriangle, kRegisterColumns>(a, {x.to + j, x.row}, rows);
    } else {
      SolveColumns<kTriangle, 1>(a, {x.to + j, x.row}, rows);
    }
  }
}

}  // namespace seqloom::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
