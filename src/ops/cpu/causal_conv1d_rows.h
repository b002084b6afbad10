#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/cpu/rows_of.h"

namespace seqloom::ops::cpu {

/// Raw pointers into ConvInputs for one sequence.
template <typename T>
struct ConvRows {
  RowsOf<const T> x;
  const float *state, *taps, *bias;  // [W-1, E], [W, E], [E] or null
  size_t tokens, channels, width;
  bool silu;
};

template <typename T>
struct ConvForward {
  RowsOf<T> y;
  float* state;  // [W-1, E], written with the sequence's last row
};

template <typename T>
struct ConvBackward {
  RowsOf<const T> dy;
  RowsOf<T> dx;
  const float* dlast;  // [W-1, E]: the gradient of the last inputs
  float* dstate;       // [W-1, E], written with the sequence's first row
  float* sums;         // [W + 1, E], zeros: the gradients of the taps and, last, of the bias from these rows
};

/// Runs rows [first, last) of one sequence, first < last, with the best SIMD target of this machine.
void conv_forward_rows(const ConvRows<float>& in, const ConvForward<float>& out, size_t first, size_t last);
void conv_forward_rows(const ConvRows<uint16_t>& in, const ConvForward<uint16_t>& out, size_t first, size_t last);
void conv_backward_rows(const ConvRows<float>& in, const ConvBackward<float>& out, size_t first, size_t last);
void conv_backward_rows(const ConvRows<uint16_t>& in, const ConvBackward<uint16_t>& out, size_t first, size_t last);

}  // namespace seqloom::ops::cpu
