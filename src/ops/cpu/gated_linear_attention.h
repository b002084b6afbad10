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
  torch::Tensor state;  // [S, H, K, V], undefined: zeros
  double scale = 1;
  std::vector<int64_t> offsets;  // of packed sequences in B = 1; empty: a row is a sequence, S = B
};

struct GlaOutputs {
  torch::Tensor o;      // [B, T, H, V]
  torch::Tensor state;  // [S, H, K, V]
  /// For the backward pass, K and V padded: the states between chunks, [H times the sum of chunks - 1 over sequences,
  /// K, V], a head of a sequence after the other, and behind the last one, [S, H, K, V].
  torch::Tensor checkpoints, last;
};

/// Gradients of GlaInputs' tensors, contiguous in their shapes; undefined where the input is absent.
struct GlaGradients {
  torch::Tensor q, k, v, gate, state;
};

GlaOutputs gated_linear_attention_forward(const GlaInputs& inputs, bool keep_checkpoints);

/// That of the state is undefined unless asked for. d_o [B, T, H, V] as v; d_state [S, H, K, V] contiguous, undefined:
/// zeros. checkpoints and last are those of the forward pass.
GlaGradients gated_linear_attention_backward(const GlaInputs& inputs, const torch::Tensor& checkpoints,
                                             const torch::Tensor& last, const torch::Tensor& d_o,
                                             const torch::Tensor& d_state, bool with_initial);

}  // namespace seqloom::ops::cpu
