#pragma once

#include <memory>
#include <string>

#include "base/torch.h"

namespace seqloom {

/// x * rsqrt(mean x^2 + eps) * weight over the last dimension (Zhang & Sennrich 2019, arXiv 1910.07467). [..., D].
class RmsNorm : public torch::nn::Module {
 public:
  explicit RmsNorm(int64_t width, double eps = 1e-5);
  torch::Tensor forward(const torch::Tensor& x);

 private:
  torch::Tensor weight_;
  double eps_;
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
