#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/cpu/rows_of.h"

namespace seqloom::ops::cpu {

/// Channels that are read and written together, row by row; also those over which the backward pass sums dB and dC.
/// Fixed, so that results do not depend on the number of threads.
constexpr size_t kPanel = 128;
/// Tokens that are worked on together, and between two states that are kept for the backward pass. What some channels
/// need of a tile stays in the first cache.
constexpr size_t kTile = 32;

/// Raw pointers into ScanInputs for one sequence.
template <typename T>
struct ScanRows {
  RowsOf<const T> u, delta, z;
  const float *A, *D, *bias;
  const float *B, *C;  // of the channels' group: rows `stride_B`, `stride_C` apart; constant maps [N, E] (stride 0)
  bool constant_B, constant_C, softplus;
  size_t tokens, channels, states, stride_B, stride_C;
};

/// Where the forward pass of one sequence writes.
template <typename T>
struct ForwardRows {
  RowsOf<T> y;
  float* state;        // [N, E], read and replaced
  float* checkpoints;  // [tiles, N, E] or null
};

/// Where the backward pass of a range of channels writes.
template <typename T>
struct BackwardRows {
  RowsOf<const T> dy;
  const float* checkpoints;
  RowsOf<T> du, ddelta, dz;
  float *dB, *dC;  // of varying maps: [T, G, N] of the range's first panel, those of the next ones panel_stride further
  size_t panel_stride;
  float *dA, *dBconst, *dCconst,
      *dstate;        // [N, E], added to; dstate is the final state's gradient and becomes the initial one's
  float *dD, *dbias;  // [E], added to
};

/// Runs the channels [begin, end) of one sequence, with the best SIMD target of this machine.
void scan_forward_range(const ScanRows<float>& in, const ForwardRows<float>& out, size_t begin, size_t end);
void scan_forward_range(const ScanRows<uint16_t>& in, const ForwardRows<uint16_t>& out, size_t begin, size_t end);
void scan_backward_range(const ScanRows<float>& in, const BackwardRows<float>& out, size_t begin, size_t end);
void scan_backward_range(const ScanRows<uint16_t>& in, const BackwardRows<uint16_t>& out, size_t begin, size_t end);

}  // namespace seqloom::ops::cpu
