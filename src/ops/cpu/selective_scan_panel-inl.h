// Panels of the selective scan: what some channels need of a tile of tokens, copied out of memory row by row, so that
// rows are read whole and the arithmetic runs on what lies together. Compiled once for each SIMD target (Highway's
// foreach_target).
#if defined(SEQLOOM_SELECTIVE_SCAN_PANEL_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef SEQLOOM_SELECTIVE_SCAN_PANEL_INL
#undef SEQLOOM_SELECTIVE_SCAN_PANEL_INL
#else
#define SEQLOOM_SELECTIVE_SCAN_PANEL_INL
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <initializer_list>
#include <vector>

#include "ops/cpu/scratch.h"
#include "ops/cpu/selective_scan_rows.h"
#include "ops/cpu/vector_io-inl.h"
#include "ops/cpu/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace seqloom::ops::cpu::HWY_NAMESPACE {

/// Channels lie in the lanes and the N states are looped over, so that nothing is summed across lanes and B_t, C_t are
/// broadcast. A block is one vector of channels.
const hn::CappedTag<float, 16> kTag;
using Vector = hn::Vec<decltype(kTag)>;
constexpr size_t kLanes = hn::MaxLanes(kTag);

/// Channels [e, e + width) of a panel and what is kept of them from tile to tile: [blocks][N][kLanes], or [width].
struct Panel {
  size_t e, width, blocks;
  float *A, *B, *C, *h;  // A log2 e, so that exp(step A) is a power of two; B and C where they are constant
  float *D, *bias;       // 0 where absent
  float* strongest;      // the largest |A log2 e| of each channel
};

/// `rows` rows of a panel's channels -> [blocks][height][kLanes], 0 beyond the width.
template <typename T>
void CopyIn(RowsOf<const T> from, size_t rows, const Panel& p, size_t height, float* to) {
  const size_t whole = p.width / kLanes;
  for (size_t r = 0; r < rows; ++r) {
    const T* row = from.data + r * from.stride + p.e;
    float* place = to + r * kLanes;
    for (size_t k = 0; k < whole; ++k) {
      hn::Store(LoadFirst(kTag, row + k * kLanes, kLanes), kTag, place + k * height * kLanes);
    }
    if (whole == p.blocks) continue;
    hn::Store(LoadFirst(kTag, row + whole * kLanes, p.width % kLanes), kTag, place + whole * height * kLanes);
  }
}

template <typename T>
void CopyOut(const float* from, size_t rows, const Panel& p, size_t height, RowsOf<T> to) {
  const size_t whole = p.width / kLanes;
  for (size_t r = 0; r < rows; ++r) {
    T* row = to.data + r * to.stride + p.e;
    const float* place = from + r * kLanes;
    for (size_t k = 0; k < whole; ++k) {
      StoreFirst(kTag, hn::Load(kTag, place + k * height * kLanes), row + k * kLanes, kLanes);
    }
    if (whole == p.blocks) continue;
    StoreFirst(kTag, hn::Load(kTag, place + whole * height * kLanes), row + whole * kLanes, p.width % kLanes);
  }
}

template <typename T>
RowsOf<T> RowsFrom(RowsOf<T> rows, size_t first) {
  return {rows.data == nullptr ? nullptr : rows.data + first * rows.stride, rows.stride};
}

/// The places of CopyIn for a matrix [N, E] or a vector [E] of all channels; null stays 0.
template <typename T>
void Gather(const float* from, const ScanRows<T>& in, size_t rows, const Panel& p, float* to) {
  std::fill_n(to, p.blocks * rows * kLanes, 0.0f);
  if (from != nullptr) CopyIn(RowsOf<const float>{from, in.channels}, rows, p, rows, to);
}

template <typename T>
void Scatter(const float* from, const ScanRows<T>& in, size_t rows, const Panel& p, float* to) {
  if (to != nullptr) CopyOut(from, rows, p, rows, RowsOf<float>{to, in.channels});
}

template <typename T>
void GatherDecay(const ScanRows<T>& in, const Panel& p) {
  Gather(in.A, in, in.states, p, p.A);
  for (size_t k = 0; k < p.blocks; ++k) {
    Vector strongest = hn::Zero(kTag);
    for (size_t n = 0; n < in.states; ++n) {
      float* place = p.A + (k * in.states + n) * kLanes;
      const Vector A = hn::Mul(hn::Load(kTag, place), hn::Set(kTag, kLog2E));
      // a NaN counts as unbounded: Exp2Product is not made for it
      strongest = hn::Max(strongest, hn::IfThenElse(hn::Eq(A, A), hn::Abs(A), hn::Inf(kTag)));
      hn::Store(A, kTag, place);
    }
    hn::Store(strongest, kTag, p.strongest + k * kLanes);
  }
}

/// Floats that the panels of `channels` channels take of a Scratch.
template <typename T>
size_t PanelSize(const ScanRows<T>& in, size_t channels) {
  return (channels + kPanel) * ((2 + in.constant_B + in.constant_C) * in.states + 3);
}

template <typename T>
Panel MakePanel(const ScanRows<T>& in, size_t e, size_t end, Scratch& scratch) {
  const size_t width = std::min(kPanel, end - e), blocks = hwy::DivCeil(width, kLanes), row = blocks * kLanes;
  const auto map = [&](bool constant) { return constant ? scratch.take(in.states * row) : nullptr; };
  const Panel p{e,
                width,
                blocks,
                scratch.take(in.states * row),
                map(in.constant_B),
                map(in.constant_C),
                scratch.take(in.states * row),
                scratch.take(row),
                scratch.take(row),
                scratch.take(row)};
  GatherDecay(in, p);
  if (in.constant_B) Gather(in.B, in, in.states, p, p.B);
  if (in.constant_C) Gather(in.C, in, in.states, p, p.C);
  Gather(in.D, in, 1, p, p.D);
  Gather(in.bias, in, 1, p, p.bias);
  return p;
}

template <typename T>
std::vector<Panel> MakePanels(const ScanRows<T>& in, size_t begin, size_t end, Scratch& scratch) {
  std::vector<Panel> panels;
  for (size_t e = begin; e < end; e += kPanel) panels.push_back(MakePanel(in, e, end, scratch));
  return panels;
}

/// Lines of some rows of a matrix, asked for one at a time in the order in which they lie, which hardware prefetchers
/// follow to a row's end. Into the second cache, since what lies a power of two apart meets in few sets of the first.
struct Lines {
  uintptr_t at;
  size_t in_row, left, to_next_row;

  HWY_INLINE void AskForNext() {
    __builtin_prefetch(reinterpret_cast<const void*>(at), 0, 2);
    at += kLine;
    if (--left > 0) return;
    left = in_row;
    at += to_next_row;
  }

  static constexpr size_t kLine = 64;
};

/// The matrices' rows that the next panel will want. They are asked for while another panel is worked on, since no
/// hardware prefetcher follows from row to row, and a line at a time, since many would wait for each other: a loop over
/// the tokens of a block asks for a line a token, and each of the loops over a tile takes another matrix.
template <typename T>
class Ahead {
 public:
  /// From row `first` of each matrix on, channels [e, e + width).
  Ahead(std::initializer_list<RowsOf<const T>> matrices, size_t first, size_t e, size_t width)
      : in_row_(hwy::DivCeil(width * sizeof(T), Lines::kLine)) {
    for (const RowsOf<const T>& m : matrices) {
      if (m.data != nullptr) matrices_[count_++] = {m.data + first * m.stride + e, m.stride};
    }
  }

  /// What the `loop`-th loop over a tile asks for at block k of `blocks`: that share of the rows. Those of the first
  /// matrix once more where there is nothing left to ask for.
  Lines lines(size_t loop, size_t k, size_t blocks) const {
    const RowsOf<const T>& m = matrices_[loop < count_ ? loop : 0];
    const size_t stride = m.stride * sizeof(T);
    return {reinterpret_cast<uintptr_t>(m.data) + k * kTile / blocks * stride, in_row_, in_row_,
            stride - in_row_ * Lines::kLine};
  }

  /// All at once what `loops` loops would leave.
  void AskForRest(size_t loops, size_t k, size_t blocks) const {
    for (; loops < count_; ++loops) {
      Lines rest = lines(loops, k, blocks);
      for (size_t i = 0; i < kTile / blocks * in_row_; ++i) rest.AskForNext();
    }
  }

 private:
  RowsOf<const T> matrices_[7];
  size_t in_row_, count_ = 0;
};

}  // namespace seqloom::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
