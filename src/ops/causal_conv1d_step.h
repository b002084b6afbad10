#pragma once

#include <optional>

#include "base/torch.h"

namespace seqloom::ops {

/// `causal_conv1d` of one more token in each of R rows: y_r = act(bias + sum_j w_j window_j + w_{W-1} x_r), behind
/// which the window moves on by x_r, in place. x [R, E]; weight [E, W]; bias [E]; windows[r] [1, E, W-1]
/// (step_states.h). Returns y [R, E] in x's type. Fused on a CPU for float32 windows whose channels lie dense.
torch::Tensor causal_conv1d_step(const torch::Tensor& x, const torch::Tensor& weight,
                                 const std::optional<torch::Tensor>& bias, at::TensorList windows, bool silu);

}  // namespace seqloom::ops
