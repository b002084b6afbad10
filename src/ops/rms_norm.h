#pragma once

#include "base/torch.h"

namespace seqloom::ops {

/// x * rsqrt(mean(x^2) + eps) * weight over the last dimension, computed in at least float32; the type of x is kept.
/// weight [n], or [..., n] with the trailing dimensions of x: a weight for each group or head.
torch::Tensor rms_norm(const torch::Tensor& x, const torch::Tensor& weight, double eps);

/// The norm with an output gate, z of x's shape: rms_norm(x) * silu(z), or with the gate first rms_norm(x * silu(z)).
torch::Tensor gated_rms_norm(const torch::Tensor& x, const torch::Tensor& z, const torch::Tensor& weight, double eps,
                             bool norm_before_gate);

/// x * rsqrt(sum(x^2) + eps) over the last dimension.
torch::Tensor l2_norm(const torch::Tensor& x, double eps);

}  // namespace seqloom::ops
