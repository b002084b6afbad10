#pragma once

#include "base/torch.h"

namespace seqloom::ops::cpu {

/// The fused kernel of ops/rotary.h: x [..., d] float32 or bfloat16, rows dense; cos, sin [..., p] float32, contiguous,
/// that expand to x's rows. The strides of x are kept.
torch::Tensor rotary(const torch::Tensor& x, const torch::Tensor& cos, const torch::Tensor& sin, bool interleaved);

}  // namespace seqloom::ops::cpu
