#pragma once

#include <vector>

#include "base/torch.h"

namespace seqloom::ops::cpu {

/// What the fused kernel reads, token-major; R are the rows of all sequences. Undefined tensors are absent.
struct ScanInputs {
  torch::Tensor u, delta, z;     // [R, E], all float32 or all bfloat16; rows may lie further apart than E
  torch::Tensor A;               // [N, E]; this and what follows float32 and contiguous
  torch::Tensor B, C;            // [R, G, N], or [N, E] when constant
  torch::Tensor D, bias;         // [E]
  torch::Tensor state;           // [S, N, E]
  std::vector<int64_t> offsets;  // [S + 1]: sequence s is rows offsets[s] to offsets[s + 1]
  bool softplus = false;

  int64_t groups() const;
};

struct ScanOutputs {
  torch::Tensor y;            // [R, E]
  torch::Tensor state;        // [S, N, E]
  torch::Tensor checkpoints;  // [tiles, N, E]: the state before each tile of tokens, kept for the backward pass
};

/// Gradients of ScanInputs' tensors, in their shapes and types; undefined where the input is absent.
struct ScanGradients {
  torch::Tensor u, delta, z, A, B, C, D, bias, state;
};

ScanOutputs selective_scan_forward(const ScanInputs& inputs, bool keep_checkpoints);

/// dy [R, E] in u's type, rows as of u; dstate [S, N, E] float32 and contiguous.
ScanGradients selective_scan_backward(const ScanInputs& inputs, const torch::Tensor& checkpoints,
                                      const torch::Tensor& dy, const torch::Tensor& dstate);

}  // namespace seqloom::ops::cpu
