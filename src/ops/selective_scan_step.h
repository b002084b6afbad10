#pragma once

#include <optional>

#include "base/torch.h"

namespace seqloom::ops {

/// `selective_scan` of one more token in each of R rows: with d = delta + delta_bias, softplus of it if asked,
///   h <- exp(d A) h + d B u, in place,   y = (C . h + D u) * silu(z)
/// u, delta, z [R, E]; A [E, N] real; B, C [R, N]; D, delta_bias [E]; states[r] = h [1, E, N] (step_states.h). D, z and
/// delta_bias may be absent. Returns y [R, E] in u's type. Fused on a CPU for float32 states whose channels lie dense.
torch::Tensor selective_scan_step(const torch::Tensor& u, const torch::Tensor& delta, const torch::Tensor& A,
                                  const torch::Tensor& B, const torch::Tensor& C, const std::optional<torch::Tensor>& D,
                                  const std::optional<torch::Tensor>& z, const std::optional<torch::Tensor>& delta_bias,
                                  bool delta_softplus, at::TensorList states);

}  // namespace seqloom::ops
