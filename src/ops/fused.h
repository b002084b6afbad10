#pragma once

#include <vector>

#include "base/torch.h"

namespace seqloom::ops {

/// Whether ops may take their fused CPU kernels. On unless the environment says SEQLOOM_FUSED=0; off, every op runs its
/// plain reference in tensor algebra.
bool fused_enabled();
void set_fused_enabled(bool enabled);

/// Whether they are on and take these tensors: on the CPU, float32 once widened. Undefined ones do not count.
bool fusable(const std::vector<torch::Tensor>& tensors);

}  // namespace seqloom::ops
