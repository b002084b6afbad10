#include "mixers/short_conv.h"

#include <cmath>

#include "ops/causal_conv1d.h"
#include "ops/causal_conv1d_step.h"

namespace seqloom {

ShortConv::ShortConv(int64_t channels, int64_t kernel, bool bias, bool silu) : silu_(silu) {
  const double bound = 1 / std::sqrt(static_cast<double>(kernel));  // torch's Conv1d default for one input channel
  weight_ = register_parameter("weight", torch::empty({channels, 1, kernel}).uniform_(-bound, bound));
  if (bias) bias_ = register_parameter("bias", torch::empty({channels}).uniform_(-bound, bound));
}

torch::Tensor ShortConv::forward(const torch::Tensor& x, torch::Tensor& window) {
  return convolved(x, window, {});
}

torch::Tensor ShortConv::convolved(const torch::Tensor& x, torch::Tensor& window,
                                   const std::optional<torch::Tensor>& cu_seqlens) {
  const auto bias = bias_.defined() ? std::make_optional(bias_) : std::nullopt;
  auto [y, after] = ops::causal_conv1d(x.transpose(1, 2), weight_.squeeze(1), bias, window, silu_, cu_seqlens);
  window = after;
  return y.transpose(1, 2);
}

torch::Tensor ShortConv::forward(const torch::Tensor& x, torch::Tensor& window, const Columns& columns) {
  if (!columns.real().defined()) return convolved(x, window, columns.cu_seqlens());
  const torch::Tensor real = columns.gather(x), before = window.transpose(1, 2);
  const torch::Tensor y = forward(real, window);
  window = columns.slid(before, real).transpose(1, 2).contiguous();
  return columns.scatter(y);
}

torch::Tensor ShortConv::step(const torch::Tensor& x, at::ArrayRef<Memory*> streams, const std::string& name) {
  const auto bias = bias_.defined() ? std::make_optional(bias_) : std::nullopt;
  const torch::Tensor taps =
      taps_.of(weight_, [](const torch::Tensor& w) { return w.detach().squeeze(1).t().contiguous(); });
  return ops::causal_conv1d_step(x, taps.t(), bias, states_of(streams, name, /*inner=*/1), silu_);
}

torch::Tensor ShortConv::empty_window(int64_t batch, const torch::TensorOptions& options) const {
  return torch::zeros({batch, weight_.size(0), kernel() - 1}, options);
}

}  // namespace seqloom
