#pragma once

// What seqloom uses of torch almost everywhere: tensors, autograd, modules, linear layers and embeddings. A file that
// needs an optimiser or a functional includes that header by itself: the rest of <torch/torch.h> costs every file 5 s
// of template instantiations, even when precompiled.

#include <torch/autograd.h>
#include <torch/nn/init.h>
#include <torch/nn/module.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/types.h>
#include <torch/utils.h>

#include "base/torch.h"
