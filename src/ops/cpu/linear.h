#pragma once

#include "base/torch.h"

namespace seqloom::ops::cpu {

/// y [rows, out] = x W^T + b, for few rows: every weight is read once from memory and used for all of them.
/// x [rows, in] float32, contiguous; weight [out, in] float32, bfloat16 or int8, rows dense; scale [out, groups]
/// float32 contiguous beside int8, else undefined, groups a divisor of in; bias [out] float32, contiguous, or
/// undefined. All on the CPU, in >= 1.
torch::Tensor linear(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& scale,
                     const torch::Tensor& bias);

/// weight * scale as float32 [out, in]: int8 [out, in], rows dense, in >= 1; scale [out, groups] float32, contiguous.
torch::Tensor dense_weight(const torch::Tensor& weight, const torch::Tensor& scale);

}  // namespace seqloom::ops::cpu
