#pragma once

#include "base/torch.h"

namespace seqloom::ops::cpu {

/// What the fused kernel reads, all float32 and contiguous, token-major. Undefined tensors are absent.
struct ScanInputs {
  torch::Tensor u, delta, z;  // [B, T, E]
  torch::Tensor A;            // [N, E]
  torch::Tensor B, C;         // [B, T, G, N], or [N, E] when constant
  torch::Tensor D, bias;      // [E]
  torch::Tensor state;        // [B, N, E]
  bool softplus = false;

  int64_t groups() const;
};

struct ScanOutputs {
  torch::Tensor y;            // [B, T, E]
  torch::Tensor state;        // [B, N, E]
  torch::Tensor checkpoints;  // [B, tiles, N, E]: the state before each tile of tokens, kept for the backward pass
};

/// Gradients of ScanInputs' tensors, in their shapes; undefined where the input is absent.
struct ScanGradients {
  torch::Tensor u, delta, z, A, B, C, D, bias, state;
};

ScanOutputs selective_scan_forward(const ScanInputs& inputs, bool keep_checkpoints);

/// dy [B, T, E], dstate [B, N, E].
ScanGradients selective_scan_backward(const ScanInputs& inputs, const torch::Tensor& checkpoints,
                                      const torch::Tensor& dy, const torch::Tensor& dstate);

}  // namespace seqloom::ops::cpu
