#pragma once
#include <torch/torch.h>

#include <initializer_list>
#include <optional>

namespace seqloom::ops {

/// Whether ops may take their fused CPU kernels. On unless the environment says SEQLOOM_FUSED=0; off, every op runs its
/// plain reference in tensor algebra.
bool fused_enabled();
void set_fused_enabled(bool enabled);

/// Whether an op with these inputs takes its fused kernel: enabled, and all present ones in memory of the CPU as
/// float32 or narrower. A double would lose what it was chosen for.
bool takes_fused(std::initializer_list<std::optional<torch::Tensor>> inputs);

/// For the backward pass of a fused op: it is not differentiable itself, and says so instead of leaving terms out.
void refuse_second_derivative(const char* op);

}  // namespace seqloom::ops
