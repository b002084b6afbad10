#pragma once

#include <vector>

#include "base/torch.h"

namespace seqloom::ops::cpu {

/// Float32; undefined tensors are absent.
struct ScanStepInputs {
  torch::Tensor u, delta, z;   // [R, E], rows dense
  torch::Tensor A;             // [N, E] contiguous
  torch::Tensor B, C;          // [R, N], rows dense
  torch::Tensor D, bias;       // [E] contiguous
  std::vector<float*> states;  // [N, E] each
  bool softplus;
};

/// y [R, E] contiguous.
void selective_scan_step(const ScanStepInputs& in, torch::Tensor& y);

}  // namespace seqloom::ops::cpu
