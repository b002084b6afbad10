#include "blocks/grid_conv.h"

#include "base/error.h"

namespace seqloom {

GridConv::GridConv(int64_t channels, int64_t kernel)
    : Conv2dImpl(torch::nn::Conv2dOptions(channels, channels, kernel).padding(kernel / 2).groups(channels)) {}

torch::Tensor GridConv::forward(const torch::Tensor& x, int64_t columns) {
  if (x.size(1) % columns != 0) misuse("T = {} tokens are no whole number of rows of {} pixels", x.size(1), columns);
  const torch::Tensor image = x.unflatten(1, {-1, columns}).permute({0, 3, 1, 2});
  return Conv2dImpl::forward(image).permute({0, 2, 3, 1}).flatten(1, 2);
}

}  // namespace seqloom
