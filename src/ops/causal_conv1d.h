#pragma once

#include <optional>
#include <tuple>

#include "base/torch.h"

namespace seqloom::ops {

/// y_t = act(bias + sum_j weight[:, j] x_{t-W+1+j}), depthwise; act is SiLU or nothing.
/// x [B, E, T]; weight [E, W]; bias [E]; initial_state [B, E, W-1]: the inputs before x, zero when absent.
/// Returns y [B, E, T] in x's type and the last W-1 inputs [B, E, W-1] in at least float32. Packed sequences lie one
/// after the other in B = 1, sequence s in tokens cu_seqlens[s] .. cu_seqlens[s + 1] (int64 or int32 [S + 1]); states
/// are then [S, E, W-1]. Fused for float32 and bfloat16 on a CPU and W <= 64; x is best a transposed view of
/// token-major memory [B, T, E], which is what a GEMM leaves, or of some of its channels.
std::tuple<torch::Tensor, torch::Tensor> causal_conv1d(const torch::Tensor& x, const torch::Tensor& weight,
                                                       const std::optional<torch::Tensor>& bias,
                                                       const std::optional<torch::Tensor>& initial_state, bool silu,
                                                       const std::optional<torch::Tensor>& cu_seqlens = {});

}  // namespace seqloom::ops
