#pragma once

#include "base/torch.h"

namespace seqloom::ops {

/// Turns pairs of the last dimension by angles that are given as their cosines and sines: (a, b) becomes
/// (a cos - b sin, b cos + a sin). x [..., d]; cos, sin [..., p], 2 p <= d, broadcast over the dimensions before; pair
/// m is (m, m + p), or with `interleaved` (2m, 2m + 1); channels from 2 p on pass through. Computed in at least
/// float32, the type of x is kept.
torch::Tensor rotary(const torch::Tensor& x, const torch::Tensor& cos, const torch::Tensor& sin, bool interleaved);

}  // namespace seqloom::ops
