#pragma once

#include <tuple>

#include "base/torch.h"

namespace seqloom::ops::cpu {

// Fused kernels of ops/affine_scan.h: h_t = a_t h_{t-1} + b_t in every channel. a, b [B, T, C] contiguous, both
// float32, bfloat16 or complex64; state [B, C] float32 or complex64, contiguous.

/// Every h_t in the type of b, and the last one in that of the state.
std::pair<torch::Tensor, torch::Tensor> affine_scan_forward(const torch::Tensor& a, const torch::Tensor& b,
                                                            const torch::Tensor& state);

/// Gradients of a, b and state from those of h [B, T, C], contiguous, and of the last state [B, C], contiguous.
std::tuple<torch::Tensor, torch::Tensor, torch::Tensor> affine_scan_backward(const torch::Tensor& a,
                                                                             const torch::Tensor& h,
                                                                             const torch::Tensor& state,
                                                                             const torch::Tensor& dh,
                                                                             const torch::Tensor& dlast);

}  // namespace seqloom::ops::cpu
