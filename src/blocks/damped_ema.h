#pragma once

#include <optional>
#include <utility>
#include <vector>

#include "base/torch.h"

namespace seqloom {

/// Mega's damped moving average as a layer, see ops/ema.h. Parameters delta, alpha, beta [D, N, 1], gamma [D, N],
/// omega [D].
class DampedEma : public torch::nn::Module {
 public:
  DampedEma(int64_t width, int64_t averages);

  /// x [B, T, D] of which the first lengths[b] tokens are real (all when undefined). `state` [B, D, N] is replaced.
  torch::Tensor forward(const torch::Tensor& x, torch::Tensor& state, const torch::Tensor& lengths);
  torch::Tensor empty_state(int64_t batch, const torch::TensorOptions& options) const;

 private:
  torch::Tensor delta_, alpha_, beta_, gamma_, omega_;
};

}  // namespace seqloom
