#pragma once

#include <optional>
#include <tuple>

#include "base/torch.h"

namespace seqloom::ops {

/// S_t = diag(e^{g_t}) S_{t-1} + k_t v_t^T,   o_t = scale S_t^T q_t         (Yang et al. 2023, arXiv 2312.06635, eq. 3)
///
/// q, k [B, T, H, K]; v [B, T, H, V], no dimension empty; log_decay g <= 0, -inf forgets everything: [B, T, H, K] (a
/// gate for each key channel), [B, T, H] (one a head: simple GLA, Mamba-2's SSD) or none (plain linear attention);
/// initial_state [B, H, K, V], zero when absent.
/// Returns o [B, T, H, V] in v's type and the final state [B, H, K, V] in at least float32.
/// Packed sequences lie one after the other in B = 1, sequence s in tokens cu_seqlens[s] .. cu_seqlens[s + 1] (int64 or
/// int32 [S + 1]); states are then [S, H, K, V].
/// Evaluated in chunks of matrix products; every exponent is a difference of cumulative gates <= 0 or centred, so that
/// strong decay neither overflows nor loses the near past.
std::tuple<torch::Tensor, torch::Tensor> gated_linear_attention(
    const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
    const std::optional<torch::Tensor>& log_decay, double scale, const std::optional<torch::Tensor>& initial_state,
    const std::optional<torch::Tensor>& cu_seqlens = {}, int64_t chunk = 64);

/// As above with the normaliser z_t = e^{g_t} z_{t-1} + k_t:  o_t = scale S_t^T q_t / (scale q_t . z_t + eps).
/// Returns o, S and z [B, H, K].
std::tuple<torch::Tensor, torch::Tensor, torch::Tensor> normalized_gated_linear_attention(
    const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
    const std::optional<torch::Tensor>& log_decay, double scale, double eps,
    const std::optional<torch::Tensor>& initial_state, const std::optional<torch::Tensor>& initial_z,
    const std::optional<torch::Tensor>& cu_seqlens = {}, int64_t chunk = 64);

/// The same mapping as a matrix [B, H, T, T] with o = matrix @ v, from a zero state.
torch::Tensor gated_linear_attention_matrix(const torch::Tensor& q, const torch::Tensor& k,
                                            const std::optional<torch::Tensor>& log_decay, double scale);

}  // namespace seqloom::ops
