#pragma once

#include <utility>

#include "base/torch.h"

namespace seqloom::ops::cpu {

/// Where a gate silu(z) stands: y = norm(x) w, norm(x) w silu(z), or norm(x silu(z)) w.
enum class NormGate { kNone, kAfter, kBefore };

/// What the fused norm reads: x, z [..., n] both float32 or both bfloat16, rows dense; z undefined without a gate;
/// weight float32, contiguous, [n] or with trailing dimensions of x.
struct NormInputs {
  torch::Tensor x, z, weight;
  double eps;
  NormGate gate;
};

struct NormGradients {
  torch::Tensor x, z, weight;
};

/// y in the type of x, contiguous, and the factor of each row, rsqrt(mean + eps), float32.
std::pair<torch::Tensor, torch::Tensor> rms_norm_forward(const NormInputs& in);

/// dy [..., n] in the type of x, rows dense.
NormGradients rms_norm_backward(const NormInputs& in, const torch::Tensor& factors, const torch::Tensor& dy);

}  // namespace seqloom::ops::cpu
