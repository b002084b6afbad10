#pragma once

#include <cstdint>
#include <tuple>
#include <vector>

#include "base/torch.h"

namespace seqloom::ops::cpu {

// Fused kernels of ops/affine_scan.h: h_t = a_t h_{t-1} + b_t in every channel. a, b [R, C] contiguous, both float32,
// bfloat16 or complex64; sequence s is rows offsets[s] .. offsets[s + 1], its state row s of [S, C] float32 or
// complex64, contiguous.

/// Every h_t in the type of b, and the last ones in that of the state.
std::pair<torch::Tensor, torch::Tensor> affine_scan_forward(const torch::Tensor& a, const torch::Tensor& b,
                                                            const torch::Tensor& state,
                                                            const std::vector<int64_t>& offsets);

/// Gradients of a, b and state from those of h [R, C], contiguous, and of the last states [S, C], contiguous.
std::tuple<torch::Tensor, torch::Tensor, torch::Tensor> affine_scan_backward(
    const torch::Tensor& a, const torch::Tensor& h, const torch::Tensor& state, const torch::Tensor& dh,
    const torch::Tensor& dlast, const std::vector<int64_t>& offsets);

}  // namespace seqloom::ops::cpu
