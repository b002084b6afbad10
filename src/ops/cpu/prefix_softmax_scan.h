#pragma once

#include "base/torch.h"

namespace seqloom::ops::cpu {

// Fused kernels of ops/prefix_softmax_scan.h. s [B, H, T] float32, contiguous; v [B, H, T, d] float32 or bfloat16, rows
// dense; m, u [B, H] and w [B, H, d] float32, contiguous.

struct SoftmaxScan {
  torch::Tensor y;        // [B, H, T, d], type and strides of v
  torch::Tensor sums;     // [B, H, T]: the running u, kept for the backward pass
  torch::Tensor m, u, w;  // behind the last token
};

SoftmaxScan prefix_softmax_forward(const torch::Tensor& s, const torch::Tensor& v, const torch::Tensor& m,
                                   const torch::Tensor& u, const torch::Tensor& w);

/// Gradients; that of a running maximum is zero.
struct SoftmaxScanGradients {
  torch::Tensor s, v, u, w;
};

/// `scan` as the forward pass from m returned it; dy in the type of v, rows dense; du, dw those of the last state.
SoftmaxScanGradients prefix_softmax_backward(const torch::Tensor& s, const torch::Tensor& v, const torch::Tensor& m,
                                             const SoftmaxScan& scan, const torch::Tensor& dy, const torch::Tensor& du,
                                             const torch::Tensor& dw);

}  // namespace seqloom::ops::cpu
