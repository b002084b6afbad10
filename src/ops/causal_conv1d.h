#pragma once

#include <optional>
#include <tuple>

#include "base/torch.h"

namespace seqloom::ops {

/// y_t = act(bias + sum_j weight[:, j] x_{t-W+1+j}), depthwise; act is SiLU or nothing.
/// x [B, E, T]; weight [E, W]; bias [E]; initial_state [B, E, W-1]: the inputs before x, zero when absent.
/// Returns y [B, E, T] and the last W-1 inputs [B, E, W-1] (in at least float32). Fused for float32 and bfloat16 on a
/// CPU; x is best a transposed view of token-major memory [B, T, E], which is what a GEMM leaves.
std::tuple<torch::Tensor, torch::Tensor> causal_conv1d(const torch::Tensor& x, const torch::Tensor& weight,
                                                       const std::optional<torch::Tensor>& bias,
                                                       const std::optional<torch::Tensor>& initial_state, bool silu);

}  // namespace seqloom::ops
