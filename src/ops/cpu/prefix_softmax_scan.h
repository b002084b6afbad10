#pragma once

#include <cstdint>
#include <vector>

#include "base/torch.h"

namespace seqloom::ops::cpu {

// Fused kernels of ops/prefix_softmax_scan.h. s [B, H, T] float32, contiguous; v [B, H, T, d] float32 or bfloat16, rows
// dense; m, u [S, H] and w [S, H, d] float32, contiguous. Sequences are packed in B = 1 where there are offsets [S +
// 1], else S = B.

struct SoftmaxScan {
  torch::Tensor y;        // [B, H, T, d], type and strides of v
  torch::Tensor sums;     // [B, H, T]: the running u, kept for the backward pass
  torch::Tensor m, u, w;  // behind the last token
};

SoftmaxScan prefix_softmax_forward(const torch::Tensor& s, const torch::Tensor& v, const torch::Tensor& m,
                                   const torch::Tensor& u, const torch::Tensor& w, const std::vector<int64_t>& offsets);

/// Gradients; that of a running maximum is zero.
struct SoftmaxScanGradients {
  torch::Tensor s, v, u, w;
};

/// `scan` as the forward pass from m returned it; dy in the type of v, rows dense; du, dw those of the last state.
SoftmaxScanGradients prefix_softmax_backward(const torch::Tensor& s, const torch::Tensor& v, const torch::Tensor& m,
                                             const SoftmaxScan& scan, const torch::Tensor& dy, const torch::Tensor& du,
                                             const torch::Tensor& dw, const std::vector<int64_t>& offsets);

}  // namespace seqloom::ops::cpu
