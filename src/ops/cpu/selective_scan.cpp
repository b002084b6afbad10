#include "ops/cpu/selective_scan.h"

#include <hwy/aligned_allocator.h>
#include <hwy/cache_control.h>

#include <numeric>
#include <utility>
#include <vector>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/selective_scan.cpp"
#include <hwy/foreach_target.h>
// clang-format off: must follow foreach_target
#include <hwy/highway.h>
#include "ops/cpu/vector_math-inl.h"
// clang-format on

#ifndef SEQLOOM_SELECTIVE_SCAN_SHARED
#define SEQLOOM_SELECTIVE_SCAN_SHARED
namespace seqloom::ops::cpu {

/// Channels that are worked on together: a cache line, and the vector lanes of AVX-512. The N states are looped over,
/// so that nothing is summed across lanes and B_t, C_t are broadcast.
constexpr size_t kBlock = 16;
/// Tokens that are worked on together, and between two states that are kept for the backward pass. What a block needs
/// of a tile stays in the first cache, and rows of memory are read a tile ahead.
constexpr size_t kTile = 32;
/// Blocks over which the backward pass sums dB and dC. Fixed, so that results do not depend on the number of threads.
constexpr size_t kSliceBlocks = 8;

/// Raw pointers into ScanInputs for one sequence. Rows of u, delta, z are E apart.
struct ScanRows {
  const float *u, *delta, *z, *A, *D, *bias;
  const float *B, *C;  // of the channels' group: rows `stride_B`, `stride_C` apart; constant maps [N, E] (stride 0)
  bool constant_B, constant_C, softplus;
  size_t tokens, channels, states, stride_B, stride_C;
};

/// Where the forward pass of one sequence writes.
struct ForwardRows {
  float* y;            // [T, E]
  float* state;        // [N, E], read and replaced
  float* checkpoints;  // [tiles, N, E] or null
};

/// Where the backward pass of a range of channels writes.
struct BackwardRows {
  const float *dy, *checkpoints;
  float *du, *ddelta, *dz;
  float *dB, *dC;  // of varying maps: [T, N] of the range's first slice, those of the next ones slice_stride further
  size_t slice_stride;
  float *dA, *dBconst, *dCconst,
      *dstate;        // [N, E], added to; dstate is the final state's gradient and becomes the initial one's
  float *dD, *dbias;  // [E], added to
};

}  // namespace seqloom::ops::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace seqloom::ops::cpu::HWY_NAMESPACE {

const hn::CappedTag<float, kBlock> kTag;
using Vector = hn::Vec<decltype(kTag)>;
constexpr size_t kLanes = hn::MaxLanes(kTag);
constexpr size_t kVectors = kBlock / kLanes;

/// One block: the channels [e, e + count) and what is gathered for them, [N][kBlock] each.
struct Block {
  size_t e, count;
  float *A, *B, *C, *h;  // A log2 e, so that exp(step A) is a power of two; B and C where they are constant
  float* strongest;      // [kBlock]: the largest |A log2 e| of each channel
};

/// A tile of tokens of one block, [kTile][kBlock] each.
struct Tile {
  float *step, *added, *y;  // added = step u
  float *decay, *kept;      // of one state: exp(step A) and exp(step A) h_{t-1}, for the backward pass
};

/// Aligned memory that is handed out in pieces.
class Scratch {
 public:
  explicit Scratch(size_t size) : memory_(hwy::AllocateAligned<float>(size)), next_(memory_.get()) {}
  float* take(size_t size) { return std::exchange(next_, next_ + size); }

 private:
  hwy::AlignedFreeUniquePtr<float[]> memory_;
  float* next_;
};

HWY_INLINE size_t Rest(const Block& b, size_t v) {
  return b.count > v * kLanes ? b.count - v * kLanes : 0;
}

/// Columns e .. e+count of [N, E] -> [N][kBlock].
void Gather(const float* from, const ScanRows& in, const Block& b, float* to) {
  for (size_t n = 0; n < in.states; ++n) {
    for (size_t v = 0; v < kVectors; ++v) {
      hn::Store(LoadFirst(kTag, from + n * in.channels + b.e + v * kLanes, Rest(b, v)), kTag,
                to + n * kBlock + v * kLanes);
    }
  }
}

void Scatter(const float* from, const ScanRows& in, const Block& b, size_t rows, float* to) {
  for (size_t n = 0; n < rows; ++n) {
    for (size_t v = 0; v < kVectors; ++v) {
      StoreFirst(kTag, hn::Load(kTag, from + n * kBlock + v * kLanes), to + n * in.channels + b.e + v * kLanes,
                 Rest(b, v));
    }
  }
}

void GatherDecay(const ScanRows& in, const Block& b) {
  Gather(in.A, in, b, b.A);
  for (size_t v = 0; v < kVectors; ++v) {
    Vector strongest = hn::Zero(kTag);
    for (size_t n = 0; n < in.states; ++n) {
      float* place = b.A + n * kBlock + v * kLanes;
      const Vector A = hn::Mul(hn::Load(kTag, place), hn::Set(kTag, kLog2E));
      // a NaN counts as unbounded: Exp2Bounded is not made for it
      strongest = hn::Max(strongest, hn::IfThenElse(hn::Eq(A, A), hn::Abs(A), hn::Inf(kTag)));
      hn::Store(A, kTag, place);
    }
    hn::Store(strongest, kTag, b.strongest + v * kLanes);
  }
}

Block MakeBlock(const ScanRows& in, size_t e, size_t end, Scratch& scratch) {
  const size_t size = in.states * kBlock;
  const auto gathered = [&](bool constant) { return constant ? scratch.take(size) : nullptr; };
  const Block b{e,
                std::min(kBlock, end - e),
                scratch.take(size),
                gathered(in.constant_B),
                gathered(in.constant_C),
                scratch.take(size),
                scratch.take(kBlock)};
  GatherDecay(in, b);
  if (in.constant_B) Gather(in.B, in, b, b.B);
  if (in.constant_C) Gather(in.C, in, b, b.C);
  return b;
}

size_t BlockSize(const ScanRows& in) {
  return (2 + in.constant_B + in.constant_C) * in.states * kBlock + kBlock;
}

HWY_INLINE size_t At(const ScanRows& in, const Block& b, size_t t, size_t v) {
  return t * in.channels + b.e + v * kLanes;
}

HWY_INLINE Vector StepBeforeSoftplus(const ScanRows& in, const Block& b, size_t t, size_t v) {
  const Vector delta = LoadFirst(kTag, in.delta + At(in, b, t, v), Rest(b, v));
  return in.bias == nullptr ? delta : hn::Add(delta, LoadFirst(kTag, in.bias + b.e + v * kLanes, Rest(b, v)));
}

/// A block's lines of a tile, wanted next.
struct Ahead {
  size_t e, first;
};

/// Part n of N of a tile's lines of one block into the cache. Rows lie E apart, which no hardware prefetcher follows:
/// asked for a few at a time, while another block is worked on, they arrive unnoticed.
HWY_INLINE void PrefetchPart(const float* rows, const ScanRows& in, Ahead ahead, size_t n) {
  if (rows == nullptr) return;
  const size_t begin = ahead.first + n * kTile / in.states, end = ahead.first + (n + 1) * kTile / in.states;
  for (size_t t = begin; t < std::min(end, in.tokens); ++t) hwy::Prefetch(rows + t * in.channels + ahead.e);
}

/// Fills the tile's step. Two loops, since one chain of operations as long as softplus's leaves no room for the next.
void PrepareStep(const ScanRows& in, const Block& b, size_t first, size_t tokens, const Tile tile) {
  float* exponential = tile.y;  // free until PrepareTile
  for (size_t i = 0; i < tokens; ++i) {
    for (size_t v = 0; v < kVectors; ++v) {
      const Vector raw = StepBeforeSoftplus(in, b, first + i, v);
      hn::Store(raw, kTag, tile.step + i * kBlock + v * kLanes);
      if (in.softplus) hn::Store(Exp(kTag, hn::Neg(hn::Abs(raw))), kTag, exponential + i * kBlock + v * kLanes);
    }
  }
  if (!in.softplus) return;
  for (size_t at = 0; at < tokens * kBlock; at += kLanes) {
    const Vector step = Softplus(kTag, hn::Load(kTag, tile.step + at), hn::Load(kTag, exponential + at));
    hn::Store(step, kTag, tile.step + at);
  }
}

/// Fills step, added and y = D u for tokens [first, first + tokens). Returns whether no |step A log2 e| exceeds 126.
bool PrepareTile(const ScanRows& in, const Block& b, size_t first, size_t tokens, const Tile tile) {
  PrepareStep(in, b, first, tokens, tile);
  const Vector limit = hn::Set(kTag, 126.0f);
  auto bounded = hn::Eq(limit, limit);
  Vector D[kVectors], strongest[kVectors];
  for (size_t v = 0; v < kVectors; ++v) {
    D[v] = in.D == nullptr ? hn::Zero(kTag) : LoadFirst(kTag, in.D + b.e + v * kLanes, Rest(b, v));
    strongest[v] = hn::Load(kTag, b.strongest + v * kLanes);
  }
  for (size_t i = 0; i < tokens; ++i) {
    for (size_t v = 0; v < kVectors; ++v) {
      const size_t place = i * kBlock + v * kLanes;
      const Vector u = LoadFirst(kTag, in.u + At(in, b, first + i, v), Rest(b, v));
      const Vector step = hn::Load(kTag, tile.step + place);
      bounded = hn::And(bounded, hn::Le(hn::Mul(hn::Abs(step), strongest[v]), limit));  // false for NaN
      hn::Store(hn::Mul(step, u), kTag, tile.added + place);
      hn::Store(hn::Mul(D[v], u), kTag, tile.y + place);
    }
  }
  return hn::AllTrue(kTag, bounded);
}

/// B_t[n] or C_t[n] for a vector of channels: broadcast, or from the constant map's row [kBlock].
template <bool kConstant>
HWY_INLINE Vector Map(const float* row, size_t v) {
  if constexpr (kConstant) return hn::Load(kTag, row + v * kLanes);
  return hn::Set(kTag, *row);
}

/// Runs h_t[n] = exp(step A[n]) h_{t-1}[n] + added B_t[n] over a tile and adds h_t[n] C_t[n] to y. `tile` by value here
/// and below: a vector store might change what a reference refers to, and its pointers would be read again and again.
template <bool kConstantB, bool kConstantC, bool kBounded, bool kKeep>
void ScanState(const ScanRows& in, const Block& b, size_t n, size_t first, size_t tokens, const Tile tile) {
  Vector h[kVectors], A[kVectors];
  for (size_t v = 0; v < kVectors; ++v) {
    h[v] = hn::Load(kTag, b.h + n * kBlock + v * kLanes);
    A[v] = hn::Load(kTag, b.A + n * kBlock + v * kLanes);
  }
  const float* B = kConstantB ? b.B + n * kBlock : in.B + first * in.stride_B + n;
  const float* C = kConstantC ? b.C + n * kBlock : in.C + first * in.stride_C + n;
  const size_t stride_B = in.stride_B, stride_C = in.stride_C;
  for (size_t i = 0; i < tokens; ++i, B += stride_B, C += stride_C) {
    for (size_t v = 0; v < kVectors; ++v) {
      const size_t at = i * kBlock + v * kLanes;
      const Vector exponent = hn::Mul(hn::Load(kTag, tile.step + at), A[v]);
      const Vector decay = kBounded ? Exp2Bounded(kTag, exponent) : Exp2(kTag, exponent);
      if constexpr (kKeep) {
        hn::Store(decay, kTag, tile.decay + at);
        hn::Store(hn::Mul(decay, h[v]), kTag, tile.kept + at);
      }
      h[v] = hn::MulAdd(decay, h[v], hn::Mul(hn::Load(kTag, tile.added + at), Map<kConstantB>(B, v)));
      hn::Store(hn::MulAdd(h[v], Map<kConstantC>(C, v), hn::Load(kTag, tile.y + at)), kTag, tile.y + at);
    }
  }
  for (size_t v = 0; v < kVectors; ++v) hn::Store(h[v], kTag, b.h + n * kBlock + v * kLanes);
}

/// y, behind the gate where there is one; in two loops as PrepareStep.
void StoreTile(const ScanRows& in, const Block& b, size_t first, size_t tokens, const Tile tile, float* y) {
  float* exponential = tile.added;  // free by now
  for (size_t i = 0; i < tokens && in.z != nullptr; ++i) {
    for (size_t v = 0; v < kVectors; ++v) {
      const Vector z = LoadFirst(kTag, in.z + At(in, b, first + i, v), Rest(b, v));
      hn::Store(Exp(kTag, hn::Neg(z)), kTag, exponential + i * kBlock + v * kLanes);
    }
  }
  const Vector one = hn::Set(kTag, 1.0f);
  for (size_t i = 0; i < tokens; ++i) {
    for (size_t v = 0; v < kVectors; ++v) {
      const size_t at = At(in, b, first + i, v), place = i * kBlock + v * kLanes;
      Vector out = hn::Load(kTag, tile.y + place);
      if (in.z != nullptr) {
        const Vector z = LoadFirst(kTag, in.z + at, Rest(b, v));
        out = hn::Mul(out, hn::Div(z, hn::Add(one, hn::Load(kTag, exponential + place))));
      }
      StoreFirst(kTag, out, y + at, Rest(b, v));
    }
  }
}

Tile MakeTile(Scratch& scratch, bool keep) {
  const auto rows = [&](bool present) { return present ? scratch.take(kTile * kBlock) : nullptr; };
  return {rows(true), rows(true), rows(true), rows(keep), rows(keep)};
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
  for (size_t n = 0; n < in.states; ++n) {
    for (const float* rows : {in.u, in.delta, in.z, static_cast<const float*>(out.y)}) {
      PrefetchPart(rows, in, ahead, n);
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
  for (size_t n = 0; n < in.states; ++n) {
    const float* const wanted[] = {in.u, in.delta, in.z, out.dy, out.du, out.ddelta, out.dz};
    for (const float* rows : wanted) PrefetchPart(rows, in, ahead, n);
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

HWY_EXPORT(Forward);
HWY_EXPORT(Backward);

namespace {

/// Channels of a slice.
constexpr int64_t kSlice = kSliceBlocks * kBlock;

const float* pointer(const torch::Tensor& t) {
  return t.defined() ? t.const_data_ptr<float>() : nullptr;
}
float* writable(torch::Tensor& t) {
  return t.defined() ? t.mutable_data_ptr<float>() : nullptr;
}
float* shifted(float* p, int64_t by) {
  return p == nullptr ? nullptr : p + by;
}

struct Sizes {
  explicit Sizes(const ScanInputs& in)
      : batch(in.u.size(0)),
        tokens(in.u.size(1)),
        channels(in.u.size(2)),
        states(in.A.size(0)),
        groups(in.groups()),
        group_channels(channels / groups),
        slices((group_channels + kSlice - 1) / kSlice),
        tiles((tokens + kTile - 1) / kTile) {}
  int64_t batch, tokens, channels, states, groups, group_channels, slices, tiles;
};

ScanRows rows_of(const ScanInputs& in, const Sizes& s, int64_t b, int64_t group) {
  const int64_t row = b * s.tokens * s.channels;
  const auto map = [&](const torch::Tensor& m) {
    return m.dim() == 2 ? pointer(m) : pointer(m) + b * s.tokens * s.groups * s.states + group * s.states;
  };
  ScanRows rows{};
  rows.u = pointer(in.u) + row;
  rows.delta = pointer(in.delta) + row;
  rows.z = in.z.defined() ? pointer(in.z) + row : nullptr;
  rows.A = pointer(in.A);
  rows.D = pointer(in.D);
  rows.bias = pointer(in.bias);
  rows.B = map(in.B);
  rows.C = map(in.C);
  rows.constant_B = in.B.dim() == 2;
  rows.constant_C = in.C.dim() == 2;
  rows.softplus = in.softplus;
  rows.tokens = s.tokens;
  rows.channels = s.channels;
  rows.states = s.states;
  rows.stride_B = rows.constant_B ? 0 : s.groups * s.states;
  rows.stride_C = rows.constant_C ? 0 : s.groups * s.states;
  return rows;
}

/// Runs work(sequence, group, first slice, first channel, last channel) in parallel over ranges of channels, which are
/// as wide as an even share for each thread allows.
template <typename Work>
void for_channel_ranges(const Sizes& s, Work work) {
  const int64_t rows = s.batch * s.groups, threads = at::get_num_threads();
  const int64_t parts = std::min(s.slices, threads / std::gcd(rows, threads));
  at::parallel_for(0, rows * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t part = task % parts, group = task / parts % s.groups, b = task / parts / s.groups;
      const int64_t slice = part * s.slices / parts, last = (part + 1) * s.slices / parts;
      work(b, group, slice, group * s.group_channels + slice * kSlice,
           group * s.group_channels + std::min(last * kSlice, s.group_channels));
    }
  });
}

}  // namespace

int64_t ScanInputs::groups() const {
  return B.dim() == 4 ? B.size(2) : C.dim() == 4 ? C.size(2) : 1;
}

ScanOutputs selective_scan_forward(const ScanInputs& in, bool keep_checkpoints) {
  const Sizes s(in);
  ScanOutputs out;
  out.y = torch::empty_like(in.u);
  out.state = in.state.clone();
  if (keep_checkpoints) out.checkpoints = torch::empty({s.batch, s.tiles, s.states, s.channels}, in.u.options());
  float *y = writable(out.y), *state = writable(out.state), *checkpoints = writable(out.checkpoints);
  for_channel_ranges(s, [&](int64_t b, int64_t group, int64_t, int64_t first, int64_t last) {
    const ForwardRows rows{y + b * s.tokens * s.channels, state + b * s.states * s.channels,
                           shifted(checkpoints, b * s.tiles * s.states * s.channels)};
    HWY_DYNAMIC_DISPATCH(Forward)(rows_of(in, s, b, group), rows, first, last);
  });
  return out;
}

ScanGradients selective_scan_backward(const ScanInputs& in, const torch::Tensor& checkpoints, const torch::Tensor& dy,
                                      const torch::Tensor& dstate) {
  const Sizes s(in);
  const auto options = in.u.options();
  const auto per_channel = [&](bool present) {
    return present ? torch::zeros({s.batch, s.channels}, options) : torch::Tensor();
  };
  const auto per_state = [&](bool present) {
    return present ? torch::zeros({s.batch, s.states, s.channels}, options) : torch::Tensor();
  };
  const auto per_token = [&](bool present) {
    return present ? torch::empty({s.slices, s.batch, s.groups, s.tokens, s.states}, options) : torch::Tensor();
  };
  ScanGradients g;
  g.u = torch::empty_like(in.u);
  g.delta = torch::empty_like(in.u);
  if (in.z.defined()) g.z = torch::empty_like(in.u);
  g.state = dstate.clone();
  torch::Tensor dA = per_state(true), dBconst = per_state(in.B.dim() == 2), dCconst = per_state(in.C.dim() == 2);
  torch::Tensor dB = per_token(in.B.dim() == 4), dC = per_token(in.C.dim() == 4);
  torch::Tensor dD = per_channel(in.D.defined()), dbias = per_channel(in.bias.defined());
  BackwardRows base{pointer(dy),       pointer(checkpoints),
                    writable(g.u),     writable(g.delta),
                    writable(g.z),     writable(dB),
                    writable(dC),      static_cast<size_t>(s.batch * s.groups * s.tokens * s.states),
                    writable(dA),      writable(dBconst),
                    writable(dCconst), writable(g.state),
                    writable(dD),      writable(dbias)};
  for_channel_ranges(s, [&](int64_t b, int64_t group, int64_t slice, int64_t first, int64_t last) {
    const int64_t row = b * s.tokens * s.channels, state = b * s.states * s.channels, channel = b * s.channels;
    const int64_t map = ((slice * s.batch + b) * s.groups + group) * s.tokens * s.states;
    const BackwardRows rows{base.dy + row,
                            base.checkpoints + b * s.tiles * s.states * s.channels,
                            base.du + row,
                            base.ddelta + row,
                            shifted(base.dz, row),
                            shifted(base.dB, map),
                            shifted(base.dC, map),
                            base.slice_stride,
                            base.dA + state,
                            shifted(base.dBconst, state),
                            shifted(base.dCconst, state),
                            base.dstate + state,
                            shifted(base.dD, channel),
                            shifted(base.dbias, channel)};
    HWY_DYNAMIC_DISPATCH(Backward)(rows_of(in, s, b, group), rows, first, last);
  });
  const auto over_batch = [](const torch::Tensor& t) { return t.defined() ? t.sum(0) : torch::Tensor(); };
  const auto over_slices = [](const torch::Tensor& t) { return t.sum(0).permute({0, 2, 1, 3}).contiguous(); };
  g.A = over_batch(dA);
  g.B = dB.defined() ? over_slices(dB) : over_batch(dBconst);
  g.C = dC.defined() ? over_slices(dC) : over_batch(dCconst);
  g.D = over_batch(dD);
  g.bias = over_batch(dbias);
  return g;
}

}  // namespace seqloom::ops::cpu
#endif  // HWY_ONCE
