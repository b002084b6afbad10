#pragma once

#include "base/torch.h"

namespace seqloom::ops::cpu {

/// What the fused kernel reads, float32. Any strides, but those of q, k and v have a contiguous last dimension.
struct DeltaInputs {
  torch::Tensor q, k;   // [B, T, H, K]
  torch::Tensor v;      // [B, T, H, V]
  torch::Tensor beta;   // [B, T, H]
  torch::Tensor gate;   // log decay <= 0, -inf forgets all: [B, T, H], or undefined
  torch::Tensor state;  // [B, H, K, V], contiguous
  double scale = 1;
};

/// `states` and `errors`, in the kernel's own layout, are for the backward pass: the states around chunks, and what was
/// to be written before beta, v_t - S^T k_t.
struct DeltaOutputs {
  torch::Tensor o;      // [B, T, H, V]
  torch::Tensor state;  // [B, H, K, V]
  torch::Tensor states, errors;
};

/// Gradients of DeltaInputs' tensors, contiguous in their shapes; undefined where the input is absent.
struct DeltaGradients {
  torch::Tensor q, k, v, beta, gate, state;
};

DeltaOutputs delta_rule_forward(const DeltaInputs& inputs, bool keep_for_backward);

/// d_o [B, T, H, V] as v, d_state [B, H, K, V] contiguous.
DeltaGradients delta_rule_backward(const DeltaInputs& inputs, const torch::Tensor& states, const torch::Tensor& errors,
                                   const torch::Tensor& d_o, const torch::Tensor& d_state);

}  // namespace seqloom::ops::cpu
