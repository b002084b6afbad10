#pragma once

#include <vector>

#include "base/torch.h"

namespace seqloom::ops::cpu {

/// x [R, E] float32, rows dense; taps [W, E], bias [E] or undefined, y [R, E]: contiguous. windows[r] [W-1, E].
void causal_conv1d_step(const torch::Tensor& x, const torch::Tensor& taps, const torch::Tensor& bias,
                        const std::vector<float*>& windows, bool silu, torch::Tensor& y);

}  // namespace seqloom::ops::cpu
