#pragma once

#include <optional>
#include <tuple>

#include "base/torch.h"

namespace seqloom::ops {

/// Mamba's scan (Gu & Dao 2023, arXiv 2312.00752, algorithm 2), with d = delta + delta_bias, softplus of it if asked:
///   h_t = exp(d_t A) h_{t-1} + d_t B_t u_t,   y_t = (C_t . h_t + D u_t) * silu(z_t)
/// u, delta, z [B, E, T]; A [E, N] real or complex; B, C [E, N] (constant), [B, N, T], or [B, G, N, T] where channel e
/// uses group e / (E/G); D, delta_bias [E]; initial_state [B, E, N], zero when absent. With complex A: B, C real [..,
/// N, 2T] holding (re, im) pairs, and 2 Re(C . h) is taken. z, D, delta_bias may be absent. Returns y [B, E, T] in u's
/// type and the last state [B, E, N] in at least float32. Packed sequences lie one after the other in B = 1, sequence s
/// in tokens cu_seqlens[s] .. cu_seqlens[s + 1] (int64 or int32 [S + 1]); states are then [S, E, N]. Fused for float32
/// and bfloat16 on a CPU with real A: never holds [B, T, E, N], and time and memory are linear in T.
std::tuple<torch::Tensor, torch::Tensor> selective_scan(
    const torch::Tensor& u, const torch::Tensor& delta, const torch::Tensor& A, const torch::Tensor& B,
    const torch::Tensor& C, const std::optional<torch::Tensor>& D, const std::optional<torch::Tensor>& z,
    const std::optional<torch::Tensor>& delta_bias, bool delta_softplus,
    const std::optional<torch::Tensor>& initial_state, const std::optional<torch::Tensor>& cu_seqlens = {});

}  // namespace seqloom::ops
