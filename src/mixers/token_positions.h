#pragma once
#include <fmt/ostream.h>

#include "base/error.h"
#include "base/torch.h"
#include "mixers/layout.h"

namespace seqloom {

/// Where the tokens of x [B, T, D] stand: pass.positions [B, T], or consecutive from `first`, [T] int64.
inline torch::Tensor token_positions(const torch::Tensor& x, const Pass& pass, int64_t first) {
  if (!pass.positions.defined()) {
    return torch::arange(first, first + x.size(1), torch::TensorOptions(torch::kInt64).device(x.device()));
  }
  if (pass.positions.sizes() != x.sizes().slice(0, 2)) {
    misuse("positions are {}, expected [{}, {}] as x has", fmt::streamed(pass.positions.sizes()), x.size(0), x.size(1));
  }
  return pass.positions;
}

}  // namespace seqloom
