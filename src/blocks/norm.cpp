#include "blocks/norm.h"

#include "base/error.h"
#include "ops/precision.h"
#include "ops/rms_norm.h"

namespace seqloom {

RmsNorm::RmsNorm(int64_t width, double eps, int64_t groups) : eps_(eps), groups_(groups) {
  if (width % groups != 0) misuse("{} groups do not divide the norm's width {}", groups, width);
  weight_ = register_parameter("weight", torch::ones({width}));
}

torch::Tensor RmsNorm::by_group(const torch::Tensor& x) const {
  return groups_ == 1 ? x : x.unflatten(-1, {groups_, -1});
}

torch::Tensor RmsNorm::forward(const torch::Tensor& x) {
  return ops::rms_norm(by_group(x), by_group(weight_), eps_).view_as(x);
}

torch::Tensor RmsNorm::gated(const torch::Tensor& x, const torch::Tensor& z, bool norm_before_gate) {
  return ops::gated_rms_norm(by_group(x), by_group(z), by_group(weight_), eps_, norm_before_gate).view_as(x);
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
