#include "ops/cpu/selective_scan_rows.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/selective_scan_backward.cpp"
#include <hwy/foreach_target.h>
// clang-format off: must follow foreach_target
#include "ops/cpu/selective_scan_tile-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace seqloom::ops::cpu::HWY_NAMESPACE {

/// Gradients of one panel that are carried from tile to tile: g = dL/dh_t and sums over t, [blocks][N][kLanes].
struct Carried {
  float *g, *dA, *dB, *dC;
  float *dD, *dbias;  // [blocks][kLanes]
};

/// A block's gradients of a tile, [kTile][kLanes] each, and the sums over a panel's blocks, [N][kTile][kLanes].
struct TileGradients {
  float* dy;                     // behind the gate
  float *through_A, *through_B;  // sum_n g kept A log2 e and sum_n g B
  float *dB, *dC;
};

/// Replaces dy by its gradient behind the gate and z by that of z still without the factor y; clears the sums over n.
void PrepareGradients(bool gated, size_t tokens, const Tile tile, const TileGradients r) {
  const Vector one = hn::Set(kTag, 1.0f);
  for (size_t at = 0; at < tokens * kLanes; at += kLanes) {
    if (gated) {
      const Vector dy = hn::Load(kTag, r.dy + at), z = hn::Load(kTag, tile.z + at), gate = Sigmoid(kTag, z);
      hn::Store(hn::Mul(dy, hn::Mul(gate, hn::MulAdd(z, hn::Sub(one, gate), one))), kTag, tile.z + at);
      hn::Store(hn::Mul(dy, hn::Mul(z, gate)), kTag, r.dy + at);
    }
    hn::Store(hn::Zero(kTag), kTag, r.through_A + at);
    hn::Store(hn::Zero(kTag), kTag, r.through_B + at);
  }
}

/// The adjoint of ScanStates, tokens from the last to the first.
template <size_t kCount, bool kConstantB, bool kConstantC>
void ReverseStates(const Block& b, const Carried& c, size_t n, size_t tokens, const float* B, size_t stride_B,
                   const float* C, size_t stride_C, const Tile tile, const TileGradients r, Lines ahead) {
  Vector g[kCount], dA[kCount], A[kCount], fixed_B[kCount], fixed_C[kCount];
  for (size_t s = 0; s < kCount; ++s) {
    const size_t at = (n + s) * kLanes;
    g[s] = hn::Load(kTag, c.g + at);
    dA[s] = hn::Load(kTag, c.dA + at);
    A[s] = hn::Load(kTag, b.A + at);
    fixed_B[s] = fixed_C[s] = hn::Zero(kTag);
  }
  B = kConstantB ? b.B + n * kLanes : B + n + (tokens - 1) * stride_B;
  C = kConstantC ? b.C + n * kLanes : C + n + (tokens - 1) * stride_C;
  for (size_t i = tokens; i-- > 0; B -= stride_B, C -= stride_C) {
    const size_t at = i * kLanes;
    const Vector dy = hn::Load(kTag, r.dy + at), added = hn::Load(kTag, tile.added + at);
    const Vector step = hn::Load(kTag, tile.step + at);
    Vector through_A = hn::Load(kTag, r.through_A + at), through_B = hn::Load(kTag, r.through_B + at);
    for (size_t s = 0; s < kCount; ++s) {
      float *sum_B = r.dB + (n + s) * kTileSize + at, *sum_C = r.dC + (n + s) * kTileSize + at;
      const Vector kept = hn::Load(kTag, tile.kept + s * kTileSize + at), map = Map<kConstantB>(B, s);
      const Vector state = hn::MulAdd(added, map, kept);
      g[s] = hn::MulAdd(dy, Map<kConstantC>(C, s), g[s]);
      if constexpr (kConstantB) {
        fixed_B[s] = hn::MulAdd(g[s], added, fixed_B[s]);
      } else {
        hn::Store(hn::MulAdd(g[s], added, hn::Load(kTag, sum_B)), kTag, sum_B);
      }
      if constexpr (kConstantC) {
        fixed_C[s] = hn::MulAdd(dy, state, fixed_C[s]);
      } else {
        hn::Store(hn::MulAdd(dy, state, hn::Load(kTag, sum_C)), kTag, sum_C);
      }
      const Vector g_kept = hn::Mul(g[s], kept);
      dA[s] = hn::MulAdd(g_kept, step, dA[s]);
      through_A = hn::MulAdd(g_kept, A[s], through_A);
      through_B = hn::MulAdd(g[s], map, through_B);
      g[s] = hn::Mul(g[s], hn::Load(kTag, tile.decay + s * kTileSize + at));
    }
    hn::Store(through_A, kTag, r.through_A + at);
    hn::Store(through_B, kTag, r.through_B + at);
    ahead.AskForNext();
  }
  for (size_t s = 0; s < kCount; ++s) {
    const size_t at = (n + s) * kLanes;
    hn::Store(g[s], kTag, c.g + at);
    hn::Store(dA[s], kTag, c.dA + at);
    if (kConstantB) hn::Store(hn::Add(fixed_B[s], hn::Load(kTag, c.dB + at)), kTag, c.dB + at);
    if (kConstantC) hn::Store(hn::Add(fixed_C[s], hn::Load(kTag, c.dC + at)), kTag, c.dC + at);
  }
}

/// du, ddelta and dz of the tile from its sums over n, in the places of u, delta and z.
void FinishGradients(bool softplus, bool gated, const Block& b, size_t tokens, const Tile tile, const TileGradients r,
                     float* sum_D, float* sum_bias) {
  Vector dD = hn::Load(kTag, sum_D), dbias = hn::Load(kTag, sum_bias);
  for (size_t at = 0; at < tokens * kLanes; at += kLanes) {
    const Vector u = hn::Load(kTag, tile.u + at), dy = hn::Load(kTag, r.dy + at);
    const Vector through_B = hn::Load(kTag, r.through_B + at);
    const Vector through_A = hn::Mul(hn::Load(kTag, r.through_A + at), hn::Set(kTag, 1 / kLog2E));
    Vector ddelta = hn::MulAdd(through_B, u, through_A);
    if (softplus) ddelta = hn::Mul(ddelta, hn::Load(kTag, tile.delta + at));  // PrepareStep left the derivative there
    dbias = hn::Add(dbias, ddelta);
    dD = hn::MulAdd(dy, u, dD);
    hn::Store(hn::MulAdd(dy, b.D, hn::Mul(through_B, hn::Load(kTag, tile.step + at))), kTag, tile.u + at);
    hn::Store(ddelta, kTag, tile.delta + at);
    if (gated) hn::Store(hn::Mul(hn::Load(kTag, tile.y + at), hn::Load(kTag, tile.z + at)), kTag, tile.z + at);
  }
  hn::Store(dD, kTag, sum_D);
  hn::Store(dbias, kTag, sum_bias);
}

#if HWY_TARGET != HWY_SCALAR
/// The sum of all lanes in four partial sums.
template <class D, class V = hn::Vec<D>>
HWY_INLINE auto Fold(D d, V v) {
  if constexpr (hn::MaxLanes(d) > 4) {
    const hn::Half<D> half;
    return Fold(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
  } else {
    return v;
  }
}
#endif

/// Sums the lanes of [N][kTile][kLanes] into rows [tokens, N], `stride` apart.
void SumLanes(const float* sums, size_t tokens, size_t states, size_t stride, float* out) {
  const auto row = [&](size_t n, size_t i) HWY_ATTR { return hn::Load(kTag, sums + n * kTileSize + i * kLanes); };
  for (size_t i = 0; i < tokens; ++i) {
    size_t n = 0;
#if HWY_TARGET != HWY_SCALAR
    const hn::FixedTag<float, 4> d;
    for (; n + 4 <= states; n += 4) {  // four at a time: lanes are added pairwise while they are brought together
      const auto a = Fold(kTag, row(n, i)), b = Fold(kTag, row(n + 1, i));
      const auto c = Fold(kTag, row(n + 2, i)), e = Fold(kTag, row(n + 3, i));
      const auto ab = hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b));
      const auto ce = hn::Add(hn::InterleaveLower(d, c, e), hn::InterleaveUpper(d, c, e));
      hn::StoreU(hn::Add(hn::ConcatLowerLower(d, ce, ab), hn::ConcatUpperUpper(d, ce, ab)), d, out + i * stride + n);
    }
#endif
    for (; n < states; ++n) out[i * stride + n] = hn::GetLane(hn::SumOfLanes(kTag, row(n, i)));
  }
}

template <typename T>
Carried MakeCarried(const ScanRows<T>& in, const Panel& p, const float* dstate, Scratch& scratch) {
  const size_t row = p.blocks * kLanes;
  const auto cleared = [&](size_t size) {
    float* place = scratch.take(size);
    std::fill_n(place, size, 0.0f);
    return place;
  };
  const Carried c{cleared(in.states * row),
                  cleared(in.states * row),
                  cleared(in.states * row),
                  cleared(in.states * row),
                  cleared(row),
                  cleared(row)};
  Gather(dstate, in, in.states, p, c.g);
  return c;
}

Carried BlockOf(const Carried& c, size_t k, size_t states) {
  const size_t at = k * states * kLanes;
  return {c.g + at, c.dA + at, c.dB + at, c.dC + at, c.dD + k * kLanes, c.dbias + k * kLanes};
}

template <typename T>
void StoreCarried(const ScanRows<T>& in, const BackwardRows<T>& out, const Panel& p, const Carried& c) {
  Scatter(c.g, in, in.states, p, out.dstate);
  Scatter(c.dA, in, in.states, p, out.dA);
  Scatter(c.dB, in, in.states, p, out.dBconst);
  Scatter(c.dC, in, in.states, p, out.dCconst);
  Scatter(c.dD, in, 1, p, out.dD);
  Scatter(c.dbias, in, 1, p, out.dbias);
}

/// What one thread needs for a panel: the rows of a tile, and the working memory of a block.
struct Buffers {
  Buffers(size_t states, Scratch& scratch) {
    for (float*& panel : panels) panel = scratch.take(kTile * kPanel);
    for (float*& rows : blocks) rows = scratch.take(kTileSize);
    decay = scratch.take(kStates * kTileSize);
    kept = scratch.take(kStates * kTileSize);
    sums = scratch.take(2 * states * kTileSize);
  }
  static size_t size(size_t states) { return 4 * kTile * kPanel + (5 + 2 * kStates + 2 * states) * kTileSize; }

  Tile tile(size_t k) const {
    const size_t at = k * kTileSize;
    return {panels[0] + at, panels[1] + at, panels[2] + at, blocks[0], blocks[1], blocks[2], decay, kept};
  }
  TileGradients gradients(size_t k, size_t states) const {
    return {panels[3] + k * kTileSize, blocks[3], blocks[4], sums, sums + states * kTileSize};
  }

  float* panels[4];  // u, delta, z, dy
  float* blocks[5];  // step, added, y, through_A, through_B
  float *decay, *kept, *sums;
};

/// The range's `index`-th panel.
template <bool kConstantB, bool kConstantC, typename T>
void BackwardTile(const ScanRows<T>& in, const BackwardRows<T>& out, const Panel& p, size_t index, const Carried& c,
                  size_t first, const Buffers& buffers, const Ahead<T>& ahead) {
  const size_t tokens = std::min(kTile, in.tokens - first), N = in.states;
  const bool gated = in.z.data != nullptr;
  Gather(out.checkpoints + first / kTile * N * in.channels, in, N, p, p.h);
  CopyIn(RowsFrom(in.u, first), tokens, p, kTile, buffers.panels[0]);
  CopyIn(RowsFrom(in.delta, first), tokens, p, kTile, buffers.panels[1]);
  if (gated) CopyIn(RowsFrom(in.z, first), tokens, p, kTile, buffers.panels[2]);
  CopyIn(RowsFrom(out.dy, first), tokens, p, kTile, buffers.panels[3]);
  std::fill_n(buffers.sums, 2 * N * kTileSize, 0.0f);
  const float *B = in.B + first * in.stride_B, *C = in.C + first * in.stride_C;
  for (size_t k = 0; k < p.blocks; ++k) {
    const Block b = BlockOf(p, k, N);
    const Carried carried = BlockOf(c, k, N);
    const Tile tile = buffers.tile(k);
    const TileGradients r = buffers.gradients(k, N);
    ahead.AskForRest(2 * PassCount(N), k, p.blocks);
    const bool bounded = PrepareTile<true>(in.softplus, b, tokens, tile);
    PrepareGradients(gated, tokens, tile, r);
    ForStates(N, [&](auto count, size_t n, size_t pass) HWY_ATTR {
      const auto scan = bounded ? ScanStates<decltype(count)::value, kConstantB, kConstantC, true, true>
                                : ScanStates<decltype(count)::value, kConstantB, kConstantC, false, true>;
      scan(b, n, tokens, B, in.stride_B, C, in.stride_C, tile, ahead.lines(pass, k, p.blocks));
      ReverseStates<decltype(count)::value, kConstantB, kConstantC>(b, carried, n, tokens, B, in.stride_B, C,
                                                                    in.stride_C, tile, r,
                                                                    ahead.lines(PassCount(N) + pass, k, p.blocks));
    });
    FinishGradients(in.softplus, gated, b, tokens, tile, r, carried.dD, carried.dbias);
  }
  CopyOut(buffers.panels[0], tokens, p, kTile, RowsFrom(out.du, first));
  CopyOut(buffers.panels[1], tokens, p, kTile, RowsFrom(out.ddelta, first));
  if (gated) CopyOut(buffers.panels[2], tokens, p, kTile, RowsFrom(out.dz, first));
  const TileGradients sums = buffers.gradients(0, N);
  const size_t at = index * out.panel_stride;
  if (!kConstantB) SumLanes(sums.dB, tokens, N, in.stride_B, out.dB + at + first * in.stride_B);
  if (!kConstantC) SumLanes(sums.dC, tokens, N, in.stride_C, out.dC + at + first * in.stride_C);
}

template <bool kConstantB, bool kConstantC, typename T>
void BackwardRange(const ScanRows<T>& in, const BackwardRows<T>& out, size_t begin, size_t end) {
  const size_t N = in.states;
  Scratch scratch(PanelSize(in, end - begin) + (end - begin + kPanel) * (4 * N + 2) + Buffers::size(N));
  const Buffers buffers(N, scratch);
  const std::vector<Panel> panels = MakePanels(in, begin, end, scratch);
  std::vector<Carried> carried;
  for (const Panel& p : panels) carried.push_back(MakeCarried(in, p, out.dstate, scratch));
  for (size_t tiles = hwy::DivCeil(in.tokens, kTile); tiles-- > 0;) {
    const size_t first = tiles * kTile;
    for (size_t k = 0; k < panels.size(); ++k) {
      const bool last = k + 1 == panels.size();
      const auto written = [](RowsOf<T> rows) { return RowsOf<const T>{rows.data, rows.stride}; };
      const Panel& next = panels[last ? 0 : k + 1];
      const Ahead<T> ahead({in.u, in.delta, in.z, out.dy, written(out.du), written(out.ddelta), written(out.dz)},
                           last ? first - std::min(first, kTile) : first, next.e, next.width);
      BackwardTile<kConstantB, kConstantC>(in, out, panels[k], k, carried[k], first, buffers, ahead);
    }
  }
  for (size_t k = 0; k < panels.size(); ++k) StoreCarried(in, out, panels[k], carried[k]);
}

template <typename T>
void Backward(const ScanRows<T>& in, const BackwardRows<T>& out, size_t begin, size_t end) {
  const auto run = in.constant_B ? (in.constant_C ? BackwardRange<true, true, T> : BackwardRange<true, false, T>)
                                 : (in.constant_C ? BackwardRange<false, true, T> : BackwardRange<false, false, T>);
  run(in, out, begin, end);
}

void BackwardFloat(const ScanRows<float>& in, const BackwardRows<float>& out, size_t begin, size_t end) {
  Backward(in, out, begin, end);
}
void BackwardBfloat16(const ScanRows<uint16_t>& in, const BackwardRows<uint16_t>& out, size_t begin, size_t end) {
  Backward(in, out, begin, end);
}

}  // namespace seqloom::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace seqloom::ops::cpu {

HWY_EXPORT(BackwardFloat);
HWY_EXPORT(BackwardBfloat16);

void scan_backward_range(const ScanRows<float>& in, const BackwardRows<float>& out, size_t begin, size_t end) {
  HWY_DYNAMIC_DISPATCH(BackwardFloat)(in, out, begin, end);
}
void scan_backward_range(const ScanRows<uint16_t>& in, const BackwardRows<uint16_t>& out, size_t begin, size_t end) {
  HWY_DYNAMIC_DISPATCH(BackwardBfloat16)(in, out, begin, end);
}

}  // namespace seqloom::ops::cpu
#endif  // HWY_ONCE
