// Small dense matrix products for the fused kernels, compiled once for each SIMD target (Highway's foreach_target).
#if defined(SEQLOOM_TILE_PRODUCT_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef SEQLOOM_TILE_PRODUCT_INL
#undef SEQLOOM_TILE_PRODUCT_INL
#else
#define SEQLOOM_TILE_PRODUCT_INL
#endif

#include <hwy/highway.h>

#include <cstddef>

HWY_BEFORE_NAMESPACE();
namespace seqloom::ops::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

/// Columns of a tile come in multiples of this, whatever the vectors' width.
constexpr size_t kColumns = 16;
const hn::CappedTag<float, kColumns> kTileTag;
using TileVector = hn::Vec<decltype(kTileTag)>;
constexpr size_t kTileLanes = hn::MaxLanes(kTileTag);

/// The accumulators of a micro tile fill the registers: 6 x 4 vectors of 32 registers, 6 x 2 of 16.
constexpr size_t kMicroRows = 6;
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL || HWY_TARGET == HWY_NEON
constexpr size_t kMicroVectors = 4;
#else
constexpr size_t kMicroVectors = 2;
#endif

/// A matrix whose element (i, k) is data[i * row + k * step].
struct Strided {
  const float* data;
  size_t row, step;
};

/// C [rows, vectors of columns] = (add ? C : 0) + A [rows, depth] B [depth, columns]; C stays in registers.
template <size_t kRows, size_t kVectors>
HWY_INLINE void MicroTile(const Strided& a, const float* HWY_RESTRICT b, size_t b_row, float* HWY_RESTRICT c,
                          size_t c_row, size_t depth, bool add) {
  TileVector sums[kRows][kVectors];
  for (size_t r = 0; r < kRows; ++r) {
    for (size_t v = 0; v < kVectors; ++v) {
      sums[r][v] = add ? hn::LoadU(kTileTag, c + r * c_row + v * kTileLanes) : hn::Zero(kTileTag);
    }
  }
  const float* HWY_RESTRICT column = a.data;
  for (size_t k = 0; k < depth; ++k, column += a.step, b += b_row) {
    TileVector row[kVectors];
    for (size_t v = 0; v < kVectors; ++v) row[v] = hn::LoadU(kTileTag, b + v * kTileLanes);
    for (size_t r = 0; r < kRows; ++r) {
      const TileVector factor = hn::Set(kTileTag, column[r * a.row]);
      for (size_t v = 0; v < kVectors; ++v) sums[r][v] = hn::MulAdd(factor, row[v], sums[r][v]);
    }
  }
  for (size_t r = 0; r < kRows; ++r) {
    for (size_t v = 0; v < kVectors; ++v) hn::StoreU(sums[r][v], kTileTag, c + r * c_row + v * kTileLanes);
  }
}

/// One column of micro tiles: rows in groups of nearly equal size, so that none is too small to hide latencies.
template <size_t kVectors>
HWY_NOINLINE void TileColumn(Strided a, const float* b, size_t b_row, float* c, size_t c_row, size_t rows, size_t depth,
                             bool add) {
  for (size_t groups = (rows + kMicroRows - 1) / kMicroRows; groups > 0; --groups) {
    const size_t count = (rows + groups - 1) / groups;
    switch (count) {
      case 6:
        MicroTile<6, kVectors>(a, b, b_row, c, c_row, depth, add);
        break;
      case 5:
        MicroTile<5, kVectors>(a, b, b_row, c, c_row, depth, add);
        break;
      case 4:
        MicroTile<4, kVectors>(a, b, b_row, c, c_row, depth, add);
        break;
      case 3:
        MicroTile<3, kVectors>(a, b, b_row, c, c_row, depth, add);
        break;
      case 2:
        MicroTile<2, kVectors>(a, b, b_row, c, c_row, depth, add);
        break;
      default:
        MicroTile<1, kVectors>(a, b, b_row, c, c_row, depth, add);
    }
    a.data += count * a.row;
    c += count * c_row;
    rows -= count;
  }
}

/// C [rows, columns] = (add ? C : 0) + A [rows, depth] B [depth, columns]. B and C are row-major with the given
/// distance between rows; columns is a multiple of kColumns. Every element is summed in the order of k.
inline void TileProduct(const Strided& a, const float* b, size_t b_row, float* c, size_t c_row, size_t rows,
                        size_t depth, size_t columns, bool add) {
  size_t vectors = columns / kTileLanes, v = 0;
  for (; v + kMicroVectors <= vectors; v += kMicroVectors) {
    TileColumn<kMicroVectors>(a, b + v * kTileLanes, b_row, c + v * kTileLanes, c_row, rows, depth, add);
  }
  if (v + 2 <= vectors) {
    TileColumn<2>(a, b + v * kTileLanes, b_row, c + v * kTileLanes, c_row, rows, depth, add);
    v += 2;
  }
  if (v < vectors) TileColumn<1>(a, b + v * kTileLanes, b_row, c + v * kTileLanes, c_row, rows, depth, add);
}

}  // namespace seqloom::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
