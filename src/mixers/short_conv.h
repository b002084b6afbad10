#pragma once

#include <string>

#include "mixers/columns.h"
#include "mixers/step_parts.h"

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
  /// One more token of each of S streams without gradients, x [S, C] -> y [S, C]; windows are streams[i][name], changed
  /// in place (CausalMixer::step).
  torch::Tensor step(const torch::Tensor& x, at::ArrayRef<Memory*> streams, const std::string& name);
  torch::Tensor empty_window(int64_t batch, const torch::TensorOptions& options) const;
  int64_t kernel() const { return weight_.size(2); }

 private:
  torch::Tensor convolved(const torch::Tensor& x, torch::Tensor& window,
                          const std::optional<torch::Tensor>& cu_seqlens);

  torch::Tensor weight_, bias_;
  Derived taps_;  // the weight as [W, C]
  bool silu_;
};

}  // namespace seqloom
