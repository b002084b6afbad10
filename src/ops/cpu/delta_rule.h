#pragma once

#include <vector>

#include "base/torch.h"

namespace seqloom::ops::cpu {

/// What the fused kernel reads, float32 or bfloat16 each, states float32; B are the rows of a batch, and S its
/// sequences: as many, or packed in one row. Any strides, but those of q, k and v have a contiguous last dimension.
struct DeltaInputs {
  torch::Tensor q, k;   // [B, T, H, K]
  torch::Tensor v;      // [B, T, H, V]
  torch::Tensor beta;   // [B, T, H]
  torch::Tensor gate;   // log decay <= 0, -inf forgets all: [B, T, H], or undefined
  torch::Tensor state;  // [S, H, K, V], contiguous
  double scale = 1;
  std::vector<int64_t> offsets = {};  // [S + 1] where sequences are packed, else empty
};

/// `states` and `errors`, in the kernel's own layout, are for the backward pass: the states around chunks, and what was
/// to be written before beta, v_t - S^T k_t.
struct DeltaOutputs {
  torch::Tensor o;      // [B, T, H, V]
  torch::Tensor state;  // [S, H, K, V]
  torch::Tensor states, errors;
};

/// Gradients of DeltaInputs' tensors, contiguous in their shapes; undefined where the input is absent.
struct DeltaGradients {
  torch::Tensor q, k, v, beta, gate, state;
};

DeltaOutputs delta_rule_forward(const DeltaInputs& inputs, bool keep_for_backward);

/// d_o [B, T, H, V] as v, d_state [S, H, K, V] contiguous.
DeltaGradients delta_rule_backward(const DeltaInputs& inputs, const torch::Tensor& states, const torch::Tensor& errors,
                                   const torch::Tensor& d_o, const torch::Tensor& d_state);

}  // namespace seqloom::ops::cpu
