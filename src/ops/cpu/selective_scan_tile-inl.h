// What the forward and the backward pass of the selective scan share: blocks of channels, tiles of tokens and the scan
// of a tile. Compiled once for each SIMD target (Highway's foreach_target).
#if defined(SEQLOOM_SELECTIVE_SCAN_TILE_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef SEQLOOM_SELECTIVE_SCAN_TILE_INL
#undef SEQLOOM_SELECTIVE_SCAN_TILE_INL
#else
#define SEQLOOM_SELECTIVE_SCAN_TILE_INL
#endif

#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <algorithm>

#include "ops/cpu/scratch.h"
#include "ops/cpu/selective_scan_rows.h"
#include "ops/cpu/vector_math-inl.h"

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

HWY_INLINE size_t Rest(const Block& b, size_t v) {
  return b.count > v * kLanes ? b.count - v * kLanes : 0;
}

/// Columns e .. e+count of [N, E] -> [N][kBlock].
inline void Gather(const float* from, const ScanRows& in, const Block& b, float* to) {
  for (size_t n = 0; n < in.states; ++n) {
    for (size_t v = 0; v < kVectors; ++v) {
      hn::Store(LoadFirst(kTag, from + n * in.channels + b.e + v * kLanes, Rest(b, v)), kTag,
                to + n * kBlock + v * kLanes);
    }
  }
}

inline void Scatter(const float* from, const ScanRows& in, const Block& b, size_t rows, float* to) {
  for (size_t n = 0; n < rows; ++n) {
    for (size_t v = 0; v < kVectors; ++v) {
      StoreFirst(kTag, hn::Load(kTag, from + n * kBlock + v * kLanes), to + n * in.channels + b.e + v * kLanes,
                 Rest(b, v));
    }
  }
}

inline void GatherDecay(const ScanRows& in, const Block& b) {
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

inline Block MakeBlock(const ScanRows& in, size_t e, size_t end, Scratch& scratch) {
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

inline size_t BlockSize(const ScanRows& in) {
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

/// Lines `begin` to `end` of a tile's lines of one block into the cache. Rows lie E apart, which no hardware prefetcher
/// follows: asked for a few at a time, while another block is worked on, they arrive unnoticed.
HWY_INLINE void PrefetchLines(const float* rows, const ScanRows& in, Ahead ahead, size_t begin, size_t end) {
  if (rows == nullptr) return;
  const float* line = rows + (ahead.first + begin) * in.channels + ahead.e;
  for (size_t t = ahead.first + begin; t < std::min(ahead.first + end, in.tokens); ++t, line += in.channels) {
    hwy::Prefetch(line);
  }
}

/// Fills the tile's step. Two loops, since one chain of operations as long as softplus's leaves no room for the next.
inline void PrepareStep(const ScanRows& in, const Block& b, size_t first, size_t tokens, const Tile tile) {
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
inline bool PrepareTile(const ScanRows& in, const Block& b, size_t first, size_t tokens, const Tile tile) {
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
      const Vector step = hn::Load(kTag, tile.step + at);
      const Vector decay = kBounded ? Exp2Product(kTag, step, A[v]) : Exp2(kTag, hn::Mul(step, A[v]));
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
inline Tile MakeTile(Scratch& scratch, bool keep) {
  const auto rows = [&](bool present) { return present ? scratch.take(kTile * kBlock) : nullptr; };
  return {rows(true), rows(true), rows(true), rows(keep), rows(keep)};
}

}  // namespace seqloom::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
