#pragma once

#include <functional>

#include "base/torch.h"

namespace seqloom {

/// run(x) whose activations are not kept: the backward pass runs it again (Chen et al. 2016, arXiv 1604.06174).
/// `run` must be a pure function of x and of parameters. x must require a gradient for parameters to get theirs.
torch::Tensor checkpointed(std::function<torch::Tensor(const torch::Tensor&)> run, const torch::Tensor& x);

}  // namespace seqloom
