#include <vector>

#include "ops/cpu/selective_scan_rows.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/selective_scan_forward.cpp"
#include <hwy/foreach_target.h>
// clang-format off: must follow foreach_target
#include "ops/cpu/selective_scan_tile-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace seqloom::ops::cpu::HWY_NAMESPACE {

/// y, behind the gate where there is one; in two loops as PrepareStep.
void StoreTile(const ScanRows& in, const Block& b, size_t first, size_t tokens, const Tile tile, float* y) {
  float* exponential = tile.added;  // free by now
  for (size_t i = 0; i < tokens && in.z != nullptr; ++i) {
    for (size_t v = 0; v < kVectors; ++v) {
      const Vector z = LoadFirst(kTag, in.z + At(in, b, first + i, v), Rest(b, v));
      hn::Store(Exp(kTag, hn::Neg(z)), kTag, exponential + i * kBlock + v * kLanes);
    }
  }
  for (size_t i = 0; i < tokens; ++i) {
    for (size_t v = 0; v < kVectors; ++v) {
      const size_t at = At(in, b, first + i, v), place = i * kBlock + v * kLanes;
      Vector out = hn::Load(kTag, tile.y + place);
      if (in.z != nullptr) {
        const Vector z = LoadFirst(kTag, in.z + at, Rest(b, v));
        out = hn::Mul(out, hn::Mul(z, InverseOfOneAnd(kTag, hn::Load(kTag, exponential + place))));
      }
      StoreFirst(kTag, out, y + at, Rest(b, v));
    }
  }
}

template <bool kConstantB, bool kConstantC>
void ForwardTile(const ScanRows& in, const ForwardRows& out, const Block& b, size_t first, const Tile& tile,
                 Ahead ahead) {
  const size_t tokens = std::min(kTile, in.tokens - first);
  if (out.checkpoints != nullptr) {
    Scatter(b.h, in, b, in.states, out.checkpoints + first / kTile * in.states * in.channels);
  }
  const auto scan = PrepareTile(in, b, first, tokens, tile) ? ScanState<kConstantB, kConstantC, true, false>
                                                            : ScanState<kConstantB, kConstantC, false, false>;
  const size_t share = hwy::DivCeil(kTile, in.states);
  for (size_t n = 0; n < in.states; ++n) {
    for (const float* rows : {in.u, in.delta, in.z, static_cast<const float*>(out.y)}) {
      PrefetchLines(rows, in, ahead, n * share, (n + 1) * share);
    }
    scan(in, b, n, first, tokens, tile);
  }
  StoreTile(in, b, first, tokens, tile, out.y);
}

/// All channels of the range take a tile before the next one begins: a row of memory is then read whole, and each of
/// its pages looked up once.
template <bool kConstantB, bool kConstantC>
void ForwardRange(const ScanRows& in, const ForwardRows& out, size_t begin, size_t end) {
  const size_t count = hwy::DivCeil(end - begin, kBlock);
  Scratch scratch(count * BlockSize(in) + 3 * kTile * kBlock);
  const Tile tile = MakeTile(scratch, false);
  std::vector<Block> blocks;
  for (size_t k = 0; k < count; ++k) {
    blocks.push_back(MakeBlock(in, begin + k * kBlock, end, scratch));
    Gather(out.state, in, blocks[k], blocks[k].h);
  }
  for (size_t first = 0; first < in.tokens; first += kTile) {
    for (size_t k = 0; k < count; ++k) {
      const Ahead ahead = k + 1 < count ? Ahead{blocks[k + 1].e, first} : Ahead{begin, first + kTile};
      ForwardTile<kConstantB, kConstantC>(in, out, blocks[k], first, tile, ahead);
    }
  }
  for (const Block& b : blocks) Scatter(b.h, in, b, in.states, out.state);
}

void Forward(const ScanRows& in, const ForwardRows& out, size_t begin, size_t end) {
  const auto run = in.constant_B ? (in.constant_C ? ForwardRange<true, true> : ForwardRange<true, false>)
                                 : (in.constant_C ? ForwardRange<false, true> : ForwardRange<false, false>);
  run(in, out, begin, end);
}

}  // namespace seqloom::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace seqloom::ops::cpu {

HWY_EXPORT(Forward);

void scan_forward_range(const ScanRows& in, const ForwardRows& out, size_t begin, size_t end) {
  HWY_DYNAMIC_DISPATCH(Forward)(in, out, begin, end);
}

}  // namespace seqloom::ops::cpu
#endif  // HWY_ONCE
