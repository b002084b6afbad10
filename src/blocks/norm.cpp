#include "blocks/norm.h"

#include "base/error.h"
#include "ops/precision.h"
#include "ops/rms_norm.h"

namespace seqloom {

RmsNorm::RmsNorm(int64_t width, double eps) : eps_(eps) {
  weight_ = register_parameter("weight", torch::ones({width}));
}

torch::Tensor RmsNorm::forward(const torch::Tensor& x) {
  return ops::rms_norm(x, weight_, eps_);
}

Norm::Norm(const std::string& kind, int64_t width, double eps) : eps_(eps) {
  if (kind != "rms" && kind != "layer") misuse("norm = \"{}\": expected rms or layer", kind);
  weight_ = register_parameter("weight", torch::ones({width}));
  if (kind == "layer") bias_ = register_parameter("bias", torch::zeros({width}));
}

torch::Tensor Norm::forward(const torch::Tensor& x) {
  if (!bias_.defined()) return ops::rms_norm(x, weight_, eps_);
  return torch::layer_norm(ops::widened(x), weight_.sizes(), ops::widened(weight_), ops::widened(bias_), eps_)
      .to(x.scalar_type());
}

}  // namespace seqloom
