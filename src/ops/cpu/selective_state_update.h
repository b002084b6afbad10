#pragma once

#include <cstdint>
#include <vector>

#include "base/torch.h"

namespace seqloom::ops::cpu {

/// Float32, contiguous; undefined tensors are absent.
struct StateUpdateInputs {
  torch::Tensor x, dt, z;     // [B, H, P]
  torch::Tensor A;            // [H, P, N], or [H, P] where all states of a channel have one rate
  torch::Tensor B, C;         // [B, G, N]
  torch::Tensor D, bias;      // [H, P]
  std::vector<int64_t> rows;  // of the state, for each of the B; negative: none, and y is 0
  bool softplus;
};

/// state [R, H, P, N] and y [B, H, P], float32 and contiguous.
void selective_state_update(const StateUpdateInputs& in, torch::Tensor& state, torch::Tensor& y);

}  // namespace seqloom::ops::cpu
