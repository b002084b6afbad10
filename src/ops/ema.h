#pragma once

#include <optional>
#include <tuple>

#include "base/torch.h"

namespace seqloom::ops {

/// The multi-dimension damped moving average of Mega (Ma et al. 2022, arXiv 2209.10655, eq. 6-8): N averages a channel,
///   p = sigmoid(delta), q = 1 - p sigmoid(alpha),   h_t = q h_{t-1} + p beta x_t
///   y_t = silu( N^-1/2 sum_n gamma_n h_tn + omega x_t )
/// x [B, T, D]; delta, alpha, beta [D, N, 1]; gamma [D, N]; omega [D]; initial_state [B, D, N], zero when absent.
/// `lengths` [B] int64: only so many first tokens of each row are real; the state after the last of them is returned.
/// Returns y [B, T, D] in x's type and the state [B, D, N] in at least float32.
/// In chunks: inside one a product with a Toeplitz matrix of the kernel, between them the N states; O(T) work.
std::tuple<torch::Tensor, torch::Tensor> ema(const torch::Tensor& x, const torch::Tensor& delta,
                                             const torch::Tensor& alpha, const torch::Tensor& beta,
                                             const torch::Tensor& gamma, const torch::Tensor& omega,
                                             const std::optional<torch::Tensor>& initial_state,
                                             const std::optional<torch::Tensor>& lengths, int64_t chunk = 64);

}  // namespace seqloom::ops
