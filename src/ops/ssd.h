#pragma once

#include <limits>
#include <optional>
#include <tuple>

#include "base/torch.h"

namespace seqloom::ops {

/// How raw step sizes become those of the scan: dt <- clamp(softplus(dt + bias), low, high), softplus only if asked
/// for.
struct StepRule {
  std::optional<torch::Tensor> bias;  // [H]
  bool softplus = false;
  double low = 0, high = std::numeric_limits<double>::infinity();
};

/// dt [B, T, H] by that rule, in at least float32.
torch::Tensor step_sizes(const torch::Tensor& dt, const StepRule& rule);

/// Mamba-2's state space dual (Dao & Gu 2024, arXiv 2405.21060, sec. 6), with step sizes dt by `rule`:
///   h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T,   y_t = (h_t C_t + D x_t) * silu(z_t)
/// x, z [B, T, H, P]; dt [B, T, H]; A [H] <= 0; B, C [B, T, G, N], head h uses group h / (H/G); D [H] or [H, P];
/// initial_state [B, H, P, N], zero when absent. D and z may be absent. Returns y in x's type and the last state
/// [B, H, P, N] in at least float32. Packed sequences lie one after the other in B = 1, sequence s in tokens
/// cu_seqlens[s] .. cu_seqlens[s + 1] (int64 or int32 [S + 1]); states are then [S, H, P, N]. It is gated linear
/// attention with one gate a head (k = B, q = C, v = dt x, log decay = dt A) and is evaluated as that, `chunk` tokens
/// at a time, which changes the speed and not the result.
std::tuple<torch::Tensor, torch::Tensor> ssd(const torch::Tensor& x, const torch::Tensor& dt, const torch::Tensor& A,
                                             const torch::Tensor& B, const torch::Tensor& C,
                                             const std::optional<torch::Tensor>& D,
                                             const std::optional<torch::Tensor>& z, const StepRule& rule,
                                             const std::optional<torch::Tensor>& initial_state,
                                             const std::optional<torch::Tensor>& cu_seqlens = {}, int64_t chunk = 64);

/// The same mapping without D and z as a matrix [B, H, T, T] with y = matrix @ x, from a zero state; dt as `step_sizes`
/// returns it.
torch::Tensor ssd_matrix(const torch::Tensor& dt, const torch::Tensor& A, const torch::Tensor& B,
                         const torch::Tensor& C);

/// x [..., T] -> [..., T, T]: the sum of x_k for j < k <= i at (i, j), 0 on the diagonal, -inf above it. Sums are those
/// of the terms themselves, never differences of one running sum, which lose the small among the large; x may be -inf.
torch::Tensor segsum(const torch::Tensor& x);

}  // namespace seqloom::ops
