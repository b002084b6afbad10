#pragma once

#include <memory>
#include <string>

#include "base/torch.h"

namespace seqloom {

/// x * rsqrt(mean x^2 + eps) * weight over the last dimension (Zhang & Sennrich 2019, arXiv 1910.07467). [..., D].
/// With `groups`, which divide D, the mean is that of each D / groups channels.
class RmsNorm : public torch::nn::Module {
 public:
  explicit RmsNorm(int64_t width, double eps = 1e-5, int64_t groups = 1);
  torch::Tensor forward(const torch::Tensor& x);
  /// norm(x) silu(z) or norm(x silu(z)), z of x's shape.
  torch::Tensor gated(const torch::Tensor& x, const torch::Tensor& z, bool norm_before_gate = true);

 private:
  torch::Tensor by_group(const torch::Tensor& x) const;

  torch::Tensor weight_;
  double eps_;
  int64_t groups_;
};

/// The norm of a residual stack, "rms" or "layer" (Ba et al. 2016, arXiv 1607.06450); statistics in float32.
class Norm : public torch::nn::Module {
 public:
  Norm(const std::string& kind, int64_t width, double eps);
  torch::Tensor forward(const torch::Tensor& x);

 private:
  torch::Tensor weight_, bias_;
  double eps_;
};

}  // namespace seqloom
