#include "ops/cpu/selective_scan_rows.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/selective_scan_forward.cpp"
#include <hwy/foreach_target.h>
// clang-format off: must follow foreach_target
#include "ops/cpu/selective_scan_tile-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace seqloom::ops::cpu::HWY_NAMESPACE {

/// y into u's place, behind the gate where there is one; in two loops as PrepareStep.
void FinishTile(bool gated, size_t tokens, const Tile tile) {
  float* exponential = tile.added;  // free by now
  for (size_t at = 0; at < tokens * kLanes && gated; at += kLanes) {
    hn::Store(Exp(kTag, hn::Neg(hn::Load(kTag, tile.z + at))), kTag, exponential + at);
  }
  for (size_t at = 0; at < tokens * kLanes; at += kLanes) {
    Vector y = hn::Load(kTag, tile.y + at);
    if (gated) {
      const Vector gate = InverseOfOneAnd(kTag, hn::Load(kTag, exponential + at));
      y = hn::Mul(y, hn::Mul(hn::Load(kTag, tile.z + at), gate));
    }
    hn::Store(y, kTag, tile.u + at);
  }
}

/// What one thread needs for a panel: the rows of a tile, and the working memory of a block.
struct Buffers {
  explicit Buffers(Scratch& scratch)
      : u(scratch.take(kTile * kPanel)),
        delta(scratch.take(kTile * kPanel)),
        z(scratch.take(kTile * kPanel)),
        step(scratch.take(kTileSize)),
        added(scratch.take(kTileSize)),
        y(scratch.take(kTileSize)) {}
  static constexpr size_t kSize = 3 * kTile * kPanel + 3 * kTileSize;

  Tile tile(size_t k) const {
    const size_t at = k * kTileSize;
    return {u + at, delta + at, z + at, step, added, y, nullptr, nullptr};
  }

  float *u, *delta, *z, *step, *added, *y;
};

template <bool kConstantB, bool kConstantC, typename T>
void ForwardTile(const ScanRows<T>& in, const ForwardRows<T>& out, const Panel& p, size_t first, const Buffers& buffers,
                 const Ahead<T>& ahead) {
  const size_t tokens = std::min(kTile, in.tokens - first), N = in.states;
  if (out.checkpoints != nullptr) Scatter(p.h, in, N, p, out.checkpoints + first / kTile * N * in.channels);
  CopyIn(RowsFrom(in.u, first), tokens, p, kTile, buffers.u);
  CopyIn(RowsFrom(in.delta, first), tokens, p, kTile, buffers.delta);
  if (in.z.data != nullptr) CopyIn(RowsFrom(in.z, first), tokens, p, kTile, buffers.z);
  const float *B = in.B + first * in.stride_B, *C = in.C + first * in.stride_C;
  for (size_t k = 0; k < p.blocks; ++k) {
    const Block b = BlockOf(p, k, N);
    const Tile tile = buffers.tile(k);
    ahead.AskForRest(PassCount(N), k, p.blocks);
    const bool bounded = PrepareTile<false>(in.softplus, b, tokens, tile);
    ForStates(N, [&](auto count, size_t n, size_t pass) HWY_ATTR {
      const auto scan = bounded ? ScanStates<decltype(count)::value, kConstantB, kConstantC, true, false>
                                : ScanStates<decltype(count)::value, kConstantB, kConstantC, false, false>;
      scan(b, n, tokens, B, in.stride_B, C, in.stride_C, tile, ahead.lines(pass, k, p.blocks));
    });
    FinishTile(in.z.data != nullptr, tokens, tile);
  }
  CopyOut(buffers.u, tokens, p, kTile, RowsFrom(out.y, first));
}

/// All channels of the range take a tile before the next one begins: a row of memory is then read whole, and each of
/// its pages looked up once.
template <bool kConstantB, bool kConstantC, typename T>
void ForwardRange(const ScanRows<T>& in, const ForwardRows<T>& out, size_t begin, size_t end) {
  Scratch scratch(PanelSize(in, end - begin) + Buffers::kSize);
  const Buffers buffers(scratch);
  const std::vector<Panel> panels = MakePanels(in, begin, end, scratch);
  for (const Panel& p : panels) Gather(out.state, in, in.states, p, p.h);
  for (size_t first = 0; first < in.tokens; first += kTile) {
    for (size_t k = 0; k < panels.size(); ++k) {
      const bool last = k + 1 == panels.size();
      const Panel& next = panels[last ? 0 : k + 1];
      const Ahead<T> ahead({in.u, in.delta, in.z, {out.y.data, out.y.stride}}, last ? first + kTile : first, next.e,
                           next.width);
      ForwardTile<kConstantB, kConstantC>(in, out, panels[k], first, buffers, ahead);
    }
  }
  for (const Panel& p : panels) Scatter(p.h, in, in.states, p, out.state);
}

template <typename T>
void Forward(const ScanRows<T>& in, const ForwardRows<T>& out, size_t begin, size_t end) {
  const auto run = in.constant_B ? (in.constant_C ? ForwardRange<true, true, T> : ForwardRange<true, false, T>)
                                 : (in.constant_C ? ForwardRange<false, true, T> : ForwardRange<false, false, T>);
  run(in, out, begin, end);
}

void ForwardFloat(const ScanRows<float>& in, const ForwardRows<float>& out, size_t begin, size_t end) {
  Forward(in, out, begin, end);
}
void ForwardBfloat16(const ScanRows<uint16_t>& in, const ForwardRows<uint16_t>& out, size_t begin, size_t end) {
  Forward(in, out, begin, end);
}

}  // namespace seqloom::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace seqloom::ops::cpu {

HWY_EXPORT(ForwardFloat);
HWY_EXPORT(ForwardBfloat16);

void scan_forward_range(const ScanRows<float>& in, const ForwardRows<float>& out, size_t begin, size_t end) {
  HWY_DYNAMIC_DISPATCH(ForwardFloat)(in, out, begin, end);
}
void scan_forward_range(const ScanRows<uint16_t>& in, const ForwardRows<uint16_t>& out, size_t begin, size_t end) {
  HWY_DYNAMIC_DISPATCH(ForwardBfloat16)(in, out, begin, end);
}

}  // namespace seqloom::ops::cpu
#endif  // HWY_ONCE
