#pragma once

#include "base/torch.h"

namespace seqloom::ops {

/// What a fused op's backward returns when its gradient is to be differentiated once more (`create_graph`): a fused
/// backward writes through raw pointers and has no derivative of its own, so the gradient is taken through the plain
/// reference. `outputs` come from the reference applied to `inputs`, with gradients enabled. One entry for each input,
/// undefined where it is undefined or needs no gradient.
torch::autograd::variable_list reference_gradients(const torch::autograd::variable_list& outputs,
                                                   const torch::autograd::variable_list& inputs,
                                                   const torch::autograd::variable_list& gradients);

/// Whether a gradient of any of these may be asked for; undefined tensors ask for none.
bool wants_gradient(const torch::autograd::variable_list& inputs);

}  // namespace seqloom::ops
