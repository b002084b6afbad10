#pragma once

#include <tuple>

#include "base/torch.h"

namespace seqloom::ops::cpu {

// Fused kernels of ops/causal_conv1d.h. All tensors float32 and contiguous, token-major: history [B, W-1+T, E] holds
// the inputs with the W-1 before them; weight [E, W]; bias [E] or undefined.

/// y [B, T, E].
torch::Tensor causal_conv1d_forward(const torch::Tensor& history, const torch::Tensor& weight,
                                    const torch::Tensor& bias, bool silu);

/// Gradients of history, weight and bias (undefined without one) from dy [B, T, E].
std::tuple<torch::Tensor, torch::Tensor, torch::Tensor> causal_conv1d_backward(const torch::Tensor& dy,
                                                                               const torch::Tensor& history,
                                                                               const torch::Tensor& weight,
                                                                               const torch::Tensor& bias, bool silu);

}  // namespace seqloom::ops::cpu
