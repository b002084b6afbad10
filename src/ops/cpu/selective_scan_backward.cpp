#include <vector>

#include "ops/cpu/selective_scan_rows.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/selective_scan_backward.cpp"
#include <hwy/foreach_target.h>
// clang-format off: must follow foreach_target
#include "ops/cpu/selective_scan_tile-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace seqloom::ops::cpu::HWY_NAMESPACE {

/// Gradients of one block that are carried from tile to tile: g = dL/dh_t and sums over t, [N][kBlock].
struct Carried {
  float *g, *dA, *dB, *dC;
  float *dD, *dbias;  // [kBlock]
};

/// A tile's gradients, [kTile][kBlock] each, and the sums over a slice's blocks, [N][kTile][kLanes].
struct TileGradients {
  float *dy, *dz;                // dy behind the gate; dz still without the factor y
  float *through_A, *through_B;  // sum_n g kept A log2 e and sum_n g B
  float *dB, *dC;
};

/// Fills dy and dz of the tile and clears the sums over n.
void PrepareGradients(const ScanRows& in, const Block& b, const float* dy, size_t first, size_t tokens,
                      const TileGradients& r) {
  const Vector one = hn::Set(kTag, 1.0f);
  for (size_t i = 0; i < tokens; ++i) {
    for (size_t v = 0; v < kVectors; ++v) {
      const size_t at = At(in, b, first + i, v), place = i * kBlock + v * kLanes;
      Vector gradient = LoadFirst(kTag, dy + at, Rest(b, v));
      if (in.z != nullptr) {
        const Vector z = LoadFirst(kTag, in.z + at, Rest(b, v)), gate = Sigmoid(kTag, z);
        hn::Store(hn::Mul(gradient, hn::Mul(gate, hn::MulAdd(z, hn::Sub(one, gate), one))), kTag, r.dz + place);
        gradient = hn::Mul(gradient, hn::Mul(z, gate));
      }
      hn::Store(gradient, kTag, r.dy + place);
      hn::Store(hn::Zero(kTag), kTag, r.through_A + place);
      hn::Store(hn::Zero(kTag), kTag, r.through_B + place);
    }
  }
}

/// The adjoint of ScanState, tokens from the last to the first.
template <bool kConstantB, bool kConstantC>
void ReverseState(const ScanRows& in, const Block& b, size_t n, size_t first, size_t tokens, const Tile tile,
                  const TileGradients r, const Carried& c) {
  Vector g[kVectors], dA[kVectors], A[kVectors], fixed_B[kVectors], fixed_C[kVectors];
  for (size_t v = 0; v < kVectors; ++v) {
    const size_t at = n * kBlock + v * kLanes;
    g[v] = hn::Load(kTag, c.g + at);
    dA[v] = hn::Load(kTag, c.dA + at);
    A[v] = hn::Load(kTag, b.A + at);
    fixed_B[v] = fixed_C[v] = hn::Zero(kTag);
  }
  const size_t stride_B = in.stride_B, stride_C = in.stride_C, last = first + tokens - 1;
  const float* B = kConstantB ? b.B + n * kBlock : in.B + last * stride_B + n;
  const float* C = kConstantC ? b.C + n * kBlock : in.C + last * stride_C + n;
  for (size_t i = tokens; i-- > 0; B -= stride_B, C -= stride_C) {
    float *sum_B = r.dB + (n * kTile + i) * kLanes, *sum_C = r.dC + (n * kTile + i) * kLanes;
    Vector dB = kConstantB ? hn::Zero(kTag) : hn::Load(kTag, sum_B);
    Vector dC = kConstantC ? hn::Zero(kTag) : hn::Load(kTag, sum_C);
    for (size_t v = 0; v < kVectors; ++v) {
      const size_t at = i * kBlock + v * kLanes;
      const Vector dy = hn::Load(kTag, r.dy + at), added = hn::Load(kTag, tile.added + at);
      const Vector kept = hn::Load(kTag, tile.kept + at), map = Map<kConstantB>(B, v);
      const Vector state = hn::MulAdd(added, map, kept);
      g[v] = hn::MulAdd(dy, Map<kConstantC>(C, v), g[v]);
      Vector &of_B = kConstantB ? fixed_B[v] : dB, &of_C = kConstantC ? fixed_C[v] : dC;
      of_B = hn::MulAdd(g[v], added, of_B);
      of_C = hn::MulAdd(dy, state, of_C);
      const Vector g_kept = hn::Mul(g[v], kept);
      dA[v] = hn::MulAdd(g_kept, hn::Load(kTag, tile.step + at), dA[v]);
      hn::Store(hn::MulAdd(g_kept, A[v], hn::Load(kTag, r.through_A + at)), kTag, r.through_A + at);
      hn::Store(hn::MulAdd(g[v], map, hn::Load(kTag, r.through_B + at)), kTag, r.through_B + at);
      g[v] = hn::Mul(g[v], hn::Load(kTag, tile.decay + at));
    }
    if (!kConstantB) hn::Store(dB, kTag, sum_B);
    if (!kConstantC) hn::Store(dC, kTag, sum_C);
  }
  for (size_t v = 0; v < kVectors; ++v) {
    const size_t at = n * kBlock + v * kLanes;
    hn::Store(g[v], kTag, c.g + at);
    hn::Store(dA[v], kTag, c.dA + at);
    if (kConstantB) hn::Store(hn::Add(fixed_B[v], hn::Load(kTag, c.dB + at)), kTag, c.dB + at);
    if (kConstantC) hn::Store(hn::Add(fixed_C[v], hn::Load(kTag, c.dC + at)), kTag, c.dC + at);
  }
}

/// du, ddelta and dz of the tile from its sums over n.
void FinishGradients(const ScanRows& in, const BackwardRows& out, const Block& b, size_t first, size_t tokens,
                     const Tile& tile, const TileGradients& r, const Carried& c) {
  for (size_t i = 0; i < tokens; ++i) {
    for (size_t v = 0; v < kVectors; ++v) {
      const size_t at = At(in, b, first + i, v), place = i * kBlock + v * kLanes;
      const size_t lane = v * kLanes, rest = Rest(b, v);
      const Vector u = LoadFirst(kTag, in.u + at, rest), dy = hn::Load(kTag, r.dy + place);
      const Vector through_B = hn::Load(kTag, r.through_B + place);
      Vector du = hn::Mul(through_B, hn::Load(kTag, tile.step + place));
      Vector ddelta = hn::Mul(hn::Load(kTag, r.through_A + place), hn::Set(kTag, 1 / kLog2E));
      ddelta = hn::MulAdd(through_B, u, ddelta);
      if (in.D != nullptr) {
        du = hn::MulAdd(dy, LoadFirst(kTag, in.D + b.e + lane, rest), du);
        hn::Store(hn::MulAdd(dy, u, hn::Load(kTag, c.dD + lane)), kTag, c.dD + lane);
      }
      if (in.softplus) ddelta = hn::Mul(ddelta, Sigmoid(kTag, StepBeforeSoftplus(in, b, first + i, v)));
      if (in.bias != nullptr) hn::Store(hn::Add(ddelta, hn::Load(kTag, c.dbias + lane)), kTag, c.dbias + lane);
      if (in.z != nullptr) {
        const Vector y = hn::Load(kTag, tile.y + place);
        StoreFirst(kTag, hn::Mul(y, hn::Load(kTag, r.dz + place)), out.dz + at, rest);
      }
      StoreFirst(kTag, du, out.du + at, rest);
      StoreFirst(kTag, ddelta, out.ddelta + at, rest);
    }
  }
}

/// Sums the lanes of [N][kTile][kLanes] into rows [tokens, N].
void SumLanes(const float* sums, size_t tokens, size_t states, float* out) {
  for (size_t n = 0; n < states; ++n) {
    for (size_t i = 0; i < tokens; ++i) {
      out[i * states + n] = hn::GetLane(hn::SumOfLanes(kTag, hn::Load(kTag, sums + (n * kTile + i) * kLanes)));
    }
  }
}

Carried MakeCarried(const ScanRows& in, const Block& b, const float* dstate, Scratch& scratch) {
  const auto cleared = [&](size_t size) {
    float* place = scratch.take(size);
    std::fill_n(place, size, 0.0f);
    return place;
  };
  const size_t size = in.states * kBlock;
  const Carried c{scratch.take(size), cleared(size), cleared(size), cleared(size), cleared(kBlock), cleared(kBlock)};
  Gather(dstate, in, b, c.g);
  return c;
}

void StoreCarried(const ScanRows& in, const BackwardRows& out, const Block& b, const Carried& c) {
  Scatter(c.g, in, b, in.states, out.dstate);
  Scatter(c.dA, in, b, in.states, out.dA);
  if (in.constant_B) Scatter(c.dB, in, b, in.states, out.dBconst);
  if (in.constant_C) Scatter(c.dC, in, b, in.states, out.dCconst);
  if (in.D != nullptr) Scatter(c.dD, in, b, 1, out.dD);
  if (in.bias != nullptr) Scatter(c.dbias, in, b, 1, out.dbias);
}

template <bool kConstantB, bool kConstantC>
void BackwardTile(const ScanRows& in, const BackwardRows& out, const Block& b, size_t first, const Tile& tile,
                  const TileGradients& r, const Carried& c, Ahead ahead) {
  const size_t tokens = std::min(kTile, in.tokens - first);
  Gather(out.checkpoints + first / kTile * in.states * in.channels, in, b, b.h);
  const auto scan = PrepareTile(in, b, first, tokens, tile) ? ScanState<kConstantB, kConstantC, true, true>
                                                            : ScanState<kConstantB, kConstantC, false, true>;
  PrepareGradients(in, b, out.dy, first, tokens, r);
  const size_t share = hwy::DivCeil(kTile, in.states);
  for (size_t n = 0; n < in.states; ++n) {
    const float* const wanted[] = {in.u, in.delta, in.z, out.dy, out.du, out.ddelta, out.dz};
    for (const float* rows : wanted) PrefetchLines(rows, in, ahead, n * share, (n + 1) * share);
    scan(in, b, n, first, tokens, tile);
    ReverseState<kConstantB, kConstantC>(in, b, n, first, tokens, tile, r, c);
  }
  FinishGradients(in, out, b, first, tokens, tile, r, c);
}

template <bool kConstantB, bool kConstantC>
void BackwardRange(const ScanRows& in, const BackwardRows& out, size_t begin, size_t end) {
  const size_t count = hwy::DivCeil(end - begin, kBlock), N = in.states;
  const size_t rows = kTile * kBlock, sums = N * kTile * kLanes;
  Scratch scratch(count * (BlockSize(in) + 4 * N * kBlock + 2 * kBlock) + 9 * rows + 2 * sums);
  const Tile tile = MakeTile(scratch, true);
  const TileGradients r{scratch.take(rows), scratch.take(rows), scratch.take(rows),
                        scratch.take(rows), scratch.take(sums), scratch.take(sums)};
  std::vector<Block> blocks;
  std::vector<Carried> carried;
  for (size_t k = 0; k < count; ++k) {
    blocks.push_back(MakeBlock(in, begin + k * kBlock, end, scratch));
    carried.push_back(MakeCarried(in, blocks[k], out.dstate, scratch));
  }
  for (size_t tiles = hwy::DivCeil(in.tokens, kTile); tiles-- > 0;) {
    const size_t first = tiles * kTile, tokens = std::min(kTile, in.tokens - first);
    for (size_t k = 0; k < count; ++k) {
      if (k % kSliceBlocks == 0) std::fill_n(r.dB, 2 * sums, 0.0f);  // dB and dC
      const Ahead ahead = k + 1 < count ? Ahead{blocks[k + 1].e, first} : Ahead{begin, first - std::min(first, kTile)};
      BackwardTile<kConstantB, kConstantC>(in, out, blocks[k], first, tile, r, carried[k], ahead);
      if ((k + 1) % kSliceBlocks != 0 && k + 1 < count) continue;
      const size_t at = k / kSliceBlocks * out.slice_stride + first * N;
      if (!kConstantB) SumLanes(r.dB, tokens, N, out.dB + at);
      if (!kConstantC) SumLanes(r.dC, tokens, N, out.dC + at);
    }
  }
  for (size_t k = 0; k < count; ++k) StoreCarried(in, out, blocks[k], carried[k]);
}

void Backward(const ScanRows& in, const BackwardRows& out, size_t begin, size_t end) {
  const auto run = in.constant_B ? (in.constant_C ? BackwardRange<true, true> : BackwardRange<true, false>)
                                 : (in.constant_C ? BackwardRange<false, true> : BackwardRange<false, false>);
  run(in, out, begin, end);
}

}  // namespace seqloom::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace seqloom::ops::cpu {

HWY_EXPORT(Backward);

void scan_backward_range(const ScanRows& in, const BackwardRows& out, size_t begin, size_t end) {
  HWY_DYNAMIC_DISPATCH(Backward)(in, out, begin, end);
}

}  // namespace seqloom::ops::cpu
#endif  // HWY_ONCE
