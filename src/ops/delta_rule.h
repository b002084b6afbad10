#pragma once

#include <optional>
#include <tuple>

#include "base/torch.h"

namespace seqloom::ops {

/// S <- e^{g_t} S;  u_t = beta_t (v_t - S^T k_t);  S_t = S + k_t u_t^T;  o_t = scale S_t^T q_t
/// (Yang et al. 2024, arXiv 2406.06484; with gate g: arXiv 2412.06464): the value stored under a key is replaced, not
/// added.
///
/// q, k [B, T, H, K]; v [B, T, H, V], no dimension empty; beta [B, T, H]; log_decay g <= 0 [B, T, H] or none, -inf
/// forgets everything; initial_state [B, H, K, V].
/// Packed sequences lie one after the other in B = 1, sequence s in tokens cu_seqlens[s] .. cu_seqlens[s + 1] (int64 or
/// int32 [S + 1]); states are then [S, H, K, V].
/// Returns o [B, T, H, V] in v's type and the final state in at least float32. Keys should have unit norm.
/// Chunked: inside a chunk the WY form turns the recurrence into one triangular solve, batched over all chunks.
std::tuple<torch::Tensor, torch::Tensor> delta_rule(const torch::Tensor& q, const torch::Tensor& k,
                                                    const torch::Tensor& v, const torch::Tensor& beta,
                                                    const std::optional<torch::Tensor>& log_decay, double scale,
                                                    const std::optional<torch::Tensor>& initial_state,
                                                    const std::optional<torch::Tensor>& cu_seqlens = {},
                                                    int64_t chunk = 64);

}  // namespace seqloom::ops
