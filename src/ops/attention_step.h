#pragma once

#include <optional>
#include <vector>

#include "base/torch.h"

namespace seqloom::ops {

/// Turning queries and keys by their positions (rotary.h); without frequencies nothing turns.
struct StepRope {
  std::optional<torch::Tensor> frequencies;  // radians a position, [d_rot / 2] float64
  std::vector<int64_t> positions;            // of each row
  bool interleaved = false;
};

/// Softmax attention of one more token in each of R rows. Row r's key, turned, and value become entry lengths[r] - 1 of
/// its cache, in place; then its queries read the last `window` of entries 0 .. lengths[r] - 1, or all of them.
/// q [R, H, d]; k, v [R, Hkv, d], Hkv divides H; keys[r], values[r] [1, Hkv, n, d] with n >= lengths[r] >= 1. Rows may
/// have one cache, at different lengths. Returns o [R, H, d] in q's type. Fused on a CPU for float32 caches whose
/// entries lie dense: an online softmax over blocks of keys, parallel over rows and key heads.
torch::Tensor attention_step(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                             at::TensorList keys, at::TensorList values, const std::vector<int64_t>& lengths,
                             std::optional<int64_t> window, double scale, const StepRope& rope);

}  // namespace seqloom::ops
