#pragma once

#include <vector>

#include "base/torch.h"

namespace seqloom::ops::cpu {

/// Float32; rows of q, k [R, G, K] and v [R, H, V] are dense.
struct LinearAttentionStepInputs {
  torch::Tensor q, k, v;
  torch::Tensor log_decay;     // g, [R, H, K] or [R, H] contiguous, or undefined
  std::vector<float*> states;  // [H, K, V] each
  double scale;
};

/// o [R, H, V] contiguous.
void gated_linear_attention_step(const LinearAttentionStepInputs& in, torch::Tensor& o);

}  // namespace seqloom::ops::cpu
