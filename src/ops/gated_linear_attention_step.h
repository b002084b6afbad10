#pragma once

#include <optional>

#include "base/torch.h"

namespace seqloom::ops {

/// `gated_linear_attention` of one more token in each of R rows: S <- diag(e^g) S + k v^T, in place, o = scale S^T q.
/// q, k [R, G, K], head h of the H uses group h / (H / G); v [R, H, V]; log_decay g [R, H, K], [R, H] or none;
/// states[r] = S [1, H, K, V] (step_states.h). Returns o [R, H, V] in v's type. Fused on a CPU for dense float32
/// states.
torch::Tensor gated_linear_attention_step(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                                          const std::optional<torch::Tensor>& log_decay, double scale,
                                          at::TensorList states);

}  // namespace seqloom::ops
