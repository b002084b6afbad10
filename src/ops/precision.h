#pragma once

#include "base/torch.h"

namespace seqloom::ops {

/// float32 for half and bfloat16, the tensor itself otherwise: sums, gates and states are kept in at least float32.
inline torch::Tensor widened(const torch::Tensor& x) {
  return x.scalar_type() == torch::kBFloat16 || x.scalar_type() == torch::kHalf ? x.to(torch::kFloat32) : x;
}

}  // namespace seqloom::ops
