#pragma once

#include <cstdint>
#include <vector>

#include "base/torch.h"

namespace seqloom::ops::cpu {

/// What the fused kernel reads, float32 or bfloat16 each, states float32. Any strides, but the last dimension is
/// contiguous.
struct GlaInputs {
  torch::Tensor q, k;   // [B, T, H, K]
  torch::Tensor v;      // [B, T, H, V]
  torch::Tensor gate;   // log decay <= 0, -inf forgets all: [B, T, H, K], [B, T, H], or undefined
  torch::Tensor state;  // [S, H, K, V]
  double scale = 1;
  std::vector<int64_t> offsets;  // of packed sequences in B = 1; empty: a row is a sequence, S = B
};

struct GlaOutputs {
  torch::Tensor o;      // [B, T, H, V]
  torch::Tensor state;  // [S, H, K, V]
  /// [H times the sum of chunks + 1 over sequences, K, V], K and V padded: the states around chunks, a head of a
  /// sequence after the other, for the backward pass.
  torch::Tensor checkpoints;
};

/// Gradients of GlaInputs' tensors, contiguous in their shapes; undefined where the input is absent.
struct GlaGradients {
  torch::Tensor q, k, v, gate, state;
};

GlaOutputs gated_linear_attention_forward(const GlaInputs& inputs, bool keep_checkpoints);

/// d_o [B, T, H, V] as v, d_state [S, H, K, V] contiguous.
GlaGradients gated_linear_attention_backward(const GlaInputs& inputs, const torch::Tensor& checkpoints,
                                             const torch::Tensor& d_o, const torch::Tensor& d_state);

}  // namespace seqloom::ops::cpu
