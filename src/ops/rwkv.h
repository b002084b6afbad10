#pragma once

#include <optional>
#include <tuple>

#include "base/torch.h"

namespace seqloom::ops {

/// o_t = (S_{t-1} + diag(u) k_t v_t^T)^T r_t,   S_t = diag(e^{w_t}) S_{t-1} + k_t v_t^T
/// (RWKV-6, Peng et al. 2024, arXiv 2404.05892, eq. 18-19): gated linear attention that reads before it writes, and
/// gives the token itself a bonus u of its own.
///
/// r, k and the log decay w <= 0, -inf forgets everything [B, T, H, K]; v [B, T, H, V]; u [H, K]; initial_state
/// [B, H, K, V], zero when absent. Returns o [B, T, H, V] in v's type and the final state in at least float32. Packed
/// sequences lie one after the other in B = 1, sequence s in tokens cu_seqlens[s] .. cu_seqlens[s + 1] (int64 or int32
/// [S + 1]); states are then [S, H, K, V].
std::tuple<torch::Tensor, torch::Tensor> rwkv6(const torch::Tensor& r, const torch::Tensor& k, const torch::Tensor& v,
                                               const torch::Tensor& w, const torch::Tensor& u,
                                               const std::optional<torch::Tensor>& initial_state,
                                               const std::optional<torch::Tensor>& cu_seqlens = {}, int64_t chunk = 64);

/// S_t = diag(e^{w_t}) S_{t-1} + b_t (a_t^T S_{t-1}) + k_t v_t^T,   o_t = S_t^T r_t
/// (RWKV-7, Peng et al. 2025, arXiv 2503.14456, eq. 15-17): a diagonal and a low rank transition; a reads the state
/// before its decay.
///
/// r, w, k, a, b [B, T, H, K], w as above; v [B, T, H, V]; initial_state [B, H, K, V], zero when absent; packed
/// sequences as above.
/// Returns o [B, T, H, V] in v's type and the final state in at least float32.
/// Chunked: inside a chunk one triangular solve, batched over all chunks, gives what the low rank part adds. Exponents
/// are differences of cumulative gates <= 0 or centred, as in gated_linear_attention.
std::tuple<torch::Tensor, torch::Tensor> rwkv7(const torch::Tensor& r, const torch::Tensor& w, const torch::Tensor& k,
                                               const torch::Tensor& v, const torch::Tensor& a, const torch::Tensor& b,
                                               const std::optional<torch::Tensor>& initial_state,
                                               const std::optional<torch::Tensor>& cu_seqlens = {}, int64_t chunk = 64);

}  // namespace seqloom::ops
