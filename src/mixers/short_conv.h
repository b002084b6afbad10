#pragma once

#include "mixers/columns.h"

namespace seqloom {

/// The short causal depthwise convolution before a scan: y_t = act(bias + sum_j w_j x_{t-W+1+j}), act SiLU or none.
/// Parameters `weight` [C, 1, W] and, where asked for, `bias` [C].
class ShortConv : public torch::nn::Module {
 public:
  ShortConv(int64_t channels, int64_t kernel, bool bias, bool silu);

  /// x [B, T, C] -> y [B, T, C]. `window` [B, C, W-1] holds the last inputs before x and is replaced by those after it.
  torch::Tensor forward(const torch::Tensor& x, torch::Tensor& window);
  /// The same where padding stands among x's tokens: it is passed over, y is 0 there. `columns` are those of x; of
  /// packed rows each has its window.
  torch::Tensor forward(const torch::Tensor& x, torch::Tensor& window, const Columns& columns);
  torch::Tensor empty_window(int64_t batch, const torch::TensorOptions& options) const;
  int64_t kernel() const { return weight_.size(2); }

 private:
  torch::Tensor convolved(const torch::Tensor& x, torch::Tensor& window,
                          const std::optional<torch::Tensor>& cu_seqlens);

  torch::Tensor weight_, bias_;
  bool silu_;
};

}  // namespace seqloom
