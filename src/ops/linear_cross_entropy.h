#pragma once

#include <cstdint>

#include "base/torch.h"

namespace seqloom::ops {

/// Mean cross entropy of the logits hidden @ weight^T against targets, those equal to `ignored` left out; a float32 (or
/// float64) scalar, NaN when all are. hidden [N, D], weight [V, D], targets [N] int64 in 0 .. V-1.
/// Many logits are never held whole: they are made some rows at a time, and where a gradient is wanted, it is taken
/// from them at once, in the forward pass. `rows` is how many; 0: chosen by size, all of them when they are few.
torch::Tensor linear_cross_entropy(const torch::Tensor& hidden, const torch::Tensor& weight,
                                   const torch::Tensor& targets, int64_t ignored = -100, int64_t rows = 0);

}  // namespace seqloom::ops
