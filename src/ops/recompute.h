#pragma once

#include <functional>
#include <vector>

#include "base/torch.h"

namespace seqloom::ops {

using ManyToMany = std::function<std::vector<torch::Tensor>(const std::vector<torch::Tensor>&)>;

/// run(inputs) whose activations are not kept: the backward pass runs it again (Chen et al. 2016, arXiv 1604.06174).
/// All tensors are defined and floating, and `run` uses no other tensor that needs a gradient. Gradients of first
/// order.
std::vector<torch::Tensor> recomputed(ManyToMany run, const std::vector<torch::Tensor>& inputs);

}  // namespace seqloom::ops
