#pragma once

#include "base/torch.h"

namespace seqloom::ops {

/// x * rsqrt(mean(x^2) + eps) * weight over the last dimension, computed in at least float32; the type of x is kept.
torch::Tensor rms_norm(const torch::Tensor& x, const torch::Tensor& weight, double eps);

/// x * rsqrt(sum(x^2) + eps) over the last dimension.
torch::Tensor l2_norm(const torch::Tensor& x, double eps);

}  // namespace seqloom::ops
