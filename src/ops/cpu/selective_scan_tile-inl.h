// The arithmetic of the selective scan on a block of channels and a tile of tokens, shared by its forward and backward
// pass. Compiled once for each SIMD target (Highway's foreach_target).
#if defined(SEQLOOM_SELECTIVE_SCAN_TILE_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef SEQLOOM_SELECTIVE_SCAN_TILE_INL
#undef SEQLOOM_SELECTIVE_SCAN_TILE_INL
#else
#define SEQLOOM_SELECTIVE_SCAN_TILE_INL
#endif

#include "ops/cpu/selective_scan_panel-inl.h"

HWY_BEFORE_NAMESPACE();
namespace seqloom::ops::cpu::HWY_NAMESPACE {

/// States that one pass over a tile takes: what does not depend on the state is then read once for all of them.
#if HWY_TARGET <= HWY_AVX3
constexpr size_t kStates = 4;
#else
constexpr size_t kStates = 2;
#endif

constexpr size_t kTileSize = kTile * kLanes;

/// One block's tile of tokens, [kTile][kLanes] each: what was read, and what is made of it.
struct Tile {
  float *u, *delta, *z;
  float *step, *added, *y;  // added = step u
  float *decay, *kept;      // [kStates]: exp(step A) and exp(step A) h_{t-1}, for the backward pass
};

/// A block's rows of what a panel keeps: [N][kLanes] each, and vectors.
struct Block {
  float *A, *B, *C, *h;
  Vector D, bias, strongest;
};

inline Block BlockOf(const Panel& p, size_t k, size_t states) {
  const auto rows = [&](float* of) { return of == nullptr ? nullptr : of + k * states * kLanes; };
  const auto vector = [&](const float* of) HWY_ATTR { return hn::Load(kTag, of + k * kLanes); };
  return {rows(p.A), rows(p.B), rows(p.C), rows(p.h), vector(p.D), vector(p.bias), vector(p.strongest)};
}

/// Fills the tile's step and, where `kKeep`, leaves sigmoid(delta + bias), the softplus's derivative, in delta. Two
/// loops, since one chain of operations as long as softplus's leaves no room for the next.
template <bool kKeep>
void PrepareStep(bool softplus, const Block& b, size_t tokens, const Tile tile) {
  const Vector bias = b.bias;
  float* exponential = tile.y;  // free until PrepareTile
  for (size_t at = 0; at < tokens * kLanes; at += kLanes) {
    const Vector raw = hn::Add(hn::Load(kTag, tile.delta + at), bias);
    hn::Store(raw, kTag, tile.step + at);
    if (softplus) hn::Store(ExpOfMinus(kTag, hn::Abs(raw)), kTag, exponential + at);
  }
  if (!softplus) return;
  for (size_t at = 0; at < tokens * kLanes; at += kLanes) {
    const Vector raw = hn::Load(kTag, tile.step + at), e = hn::Load(kTag, exponential + at);
    hn::Store(Softplus(kTag, raw, e), kTag, tile.step + at);
    if (!kKeep) continue;
    const Vector above = InverseOfOneAnd(kTag, e);  // sigmoid |raw|
    hn::Store(hn::IfThenElse(hn::Lt(raw, hn::Zero(kTag)), hn::Mul(e, above), above), kTag, tile.delta + at);
  }
}

/// Fills step, added and y = D u. Returns whether no |step A log2 e| exceeds 126.
template <bool kKeep>
bool PrepareTile(bool softplus, const Block& b, size_t tokens, const Tile tile) {
  PrepareStep<kKeep>(softplus, b, tokens, tile);
  const Vector D = b.D, strongest = b.strongest, limit = hn::Set(kTag, 126.0f);
  auto bounded = hn::Eq(limit, limit);
  for (size_t at = 0; at < tokens * kLanes; at += kLanes) {
    const Vector u = hn::Load(kTag, tile.u + at), step = hn::Load(kTag, tile.step + at);
    bounded = hn::And(bounded, hn::Le(hn::Mul(hn::Abs(step), strongest), limit));  // false for NaN
    hn::Store(hn::Mul(step, u), kTag, tile.added + at);
    hn::Store(hn::Mul(D, u), kTag, tile.y + at);
  }
  return hn::AllTrue(kTag, bounded);
}

/// B_t[n] or C_t[n] for a vector of channels: broadcast, or from the constant map's row [kLanes].
template <bool kConstant>
HWY_INLINE Vector Map(const float* row, size_t s) {
  if constexpr (kConstant) return hn::Load(kTag, row + s * kLanes);
  return hn::Set(kTag, row[s]);
}

/// Runs h_t[n] = exp(step A[n]) h_{t-1}[n] + added B_t[n] over a tile for kCount states from n and adds h_t[n] C_t[n]
/// to y. B and C point to the tile's first token. `tile` by value here and below: a vector store might change what a
/// reference refers to, and its pointers would be read again and again.
template <size_t kCount, bool kConstantB, bool kConstantC, bool kBounded, bool kKeep>
void ScanStates(const Block& b, size_t n, size_t tokens, const float* B, size_t stride_B, const float* C,
                size_t stride_C, const Tile tile, Lines ahead) {
  Vector h[kCount], A[kCount];
  for (size_t s = 0; s < kCount; ++s) {
    h[s] = hn::Load(kTag, b.h + (n + s) * kLanes);
    A[s] = hn::Load(kTag, b.A + (n + s) * kLanes);
  }
  B = kConstantB ? b.B + n * kLanes : B + n;
  C = kConstantC ? b.C + n * kLanes : C + n;
  for (size_t at = 0; at < tokens * kLanes; at += kLanes, B += stride_B, C += stride_C) {
    const Vector step = hn::Load(kTag, tile.step + at), added = hn::Load(kTag, tile.added + at);
    Vector y = hn::Load(kTag, tile.y + at);
    for (size_t s = 0; s < kCount; ++s) {
      const Vector decay = kBounded ? Exp2Product(kTag, step, A[s]) : Exp2(kTag, hn::Mul(step, A[s]));
      if constexpr (kKeep) {
        hn::Store(decay, kTag, tile.decay + s * kTileSize + at);
        hn::Store(hn::Mul(decay, h[s]), kTag, tile.kept + s * kTileSize + at);
      }
      h[s] = hn::MulAdd(decay, h[s], hn::Mul(added, Map<kConstantB>(B, s)));
      y = hn::MulAdd(h[s], Map<kConstantC>(C, s), y);
    }
    hn::Store(y, kTag, tile.y + at);
    ahead.AskForNext();
  }
  for (size_t s = 0; s < kCount; ++s) hn::Store(h[s], kTag, b.h + (n + s) * kLanes);
}

/// Calls pass(count, n, index) for all N states, `count` of them from n on; the count is a constant of its type.
template <typename Pass>
HWY_INLINE void ForStates(size_t states, Pass pass) {
  size_t n = 0, index = 0;
  for (; n + kStates <= states; n += kStates) pass(std::integral_constant<size_t, kStates>(), n, index++);
  for (; n < states; ++n) pass(std::integral_constant<size_t, 1>(), n, index++);
}

inline size_t PassCount(size_t states) {
  return states / kStates + states % kStates;
}

}  // namespace seqloom::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
