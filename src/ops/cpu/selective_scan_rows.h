#pragma once

#include <cstddef>

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

/// Runs the channels [begin, end) of one sequence, with the best SIMD target of this machine.
void scan_forward_range(const ScanRows& in, const ForwardRows& out, size_t begin, size_t end);
void scan_backward_range(const ScanRows& in, const BackwardRows& out, size_t begin, size_t end);

}  // namespace seqloom::ops::cpu
