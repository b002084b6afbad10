#include "blocks/damped_ema.h"

#include "ops/ema.h"

namespace seqloom {

DampedEma::DampedEma(int64_t width, int64_t averages) {
  const auto normal = [](std::vector<int64_t> shape, double deviation) { return torch::randn(shape) * deviation; };
  const torch::Tensor sign = 1 - 2 * (torch::arange(averages) % 2).view({1, averages, 1});  // +1, -1, +1 ...
  delta_ = register_parameter("delta", normal({width, averages, 1}, 0.2));
  alpha_ = register_parameter("alpha", normal({width, averages, 1}, 0.2));
  beta_ = register_parameter("beta", normal({width, averages, 1}, 0.02) + sign);
  gamma_ = register_parameter("gamma", normal({width, averages}, 1));
  omega_ = register_parameter("omega", normal({width}, 1));
}

torch::Tensor DampedEma::forward(const torch::Tensor& x, torch::Tensor& state, const torch::Tensor& lengths) {
  const auto ends = lengths.defined() ? std::make_optional(lengths) : std::nullopt;
  auto [y, after] = ops::ema(x, delta_, alpha_, beta_, gamma_, omega_, state, ends);
  state = after;
  return y;
}

torch::Tensor DampedEma::empty_state(int64_t batch, const torch::TensorOptions& options) const {
  return torch::zeros({batch, gamma_.size(0), gamma_.size(1)}, options);
}

}  // namespace seqloom
