#pragma once

#include <optional>
#include <vector>

#include "base/torch.h"

namespace seqloom::ops::cpu {

/// Float32; rows of q [R, H, d] and k, v [R, Hkv, d] are dense.
struct AttentionStepInputs {
  torch::Tensor q, k, v;
  at::TensorList keys, values;  // [1, Hkv, n, d] each, entries dense
  const std::vector<int64_t>& lengths;
  std::optional<int64_t> window;
  double scale;
  torch::Tensor frequencies;  // [d_rot / 2] float64 or undefined
  const std::vector<int64_t>& positions;
  bool interleaved;
};

/// o [R, H, d] contiguous.
void attention_step(const AttentionStepInputs& in, torch::Tensor& o);

}  // namespace seqloom::ops::cpu
