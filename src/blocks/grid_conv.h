#pragma once

#include <torch/nn/modules/conv.h>

#include "base/torch.h"

namespace seqloom {

/// A depthwise k x k convolution (k odd) with bias of tokens that are the pixels of an image, row by row; zeros
/// outside. Parameters weight [C, 1, k, k], bias [C].
class GridConv : public torch::nn::Conv2dImpl {
 public:
  GridConv(int64_t channels, int64_t kernel);

  /// x [B, T, C] -> y [B, T, C]. Throws UsageError when T is not a whole number of rows of `columns` pixels.
  torch::Tensor forward(const torch::Tensor& x, int64_t columns);
};

}  // namespace seqloom
