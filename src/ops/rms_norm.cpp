#include "ops/rms_norm.h"

#include "ops/precision.h"

namespace seqloom::ops {

torch::Tensor rms_norm(const torch::Tensor& x, const torch::Tensor& weight, double eps) {
  const auto wide = widened(x);
  const auto scale = torch::rsqrt(wide.square().mean(-1, /*keepdim=*/true) + eps);
  return (wide * scale * widened(weight)).to(x.scalar_type());
}

torch::Tensor l2_norm(const torch::Tensor& x, double eps) {
  const auto wide = widened(x);
  return (wide * torch::rsqrt(wide.square().sum(-1, /*keepdim=*/true) + eps)).to(x.scalar_type());
}

}  // namespace seqloom::ops
