#pragma once

#include <optional>

#include "base/torch.h"

namespace seqloom::ops {

/// One more token of Mamba's or Mamba-2's scan for a batch whose states are kept in one tensor, as decoders in Python
/// have it: with d = dt + dt_bias, softplus of it if asked,
///   h <- exp(d A) h + d B x, in place,   y = (C . h + D x) * silu(z)
/// state [B, H, P, N] of any floating type; x, dt, z [B, H, P]; A [H, P, N] real; B, C [B, G, N], head h uses group
/// h / (H/G); D, dt_bias [H, P]; without heads state [B, E, N], x [B, E], A [E, N], B, C [B, N] or [B, G, N], channel e
/// then uses group e / (E/G). D, z and dt_bias may be absent. With `rows` [B] (int32 or int64) row b of x has the state
/// rows[b] of [R, ..]; a negative one means none, and its y is 0. Returns y in x's shape and type. No gradient. Fused
/// on a CPU but for float64; A that is expanded along N, as Mamba-2's is, costs one exponential a channel.
torch::Tensor selective_state_update(const torch::Tensor& state, const torch::Tensor& x, const torch::Tensor& dt,
                                     const torch::Tensor& A, const torch::Tensor& B, const torch::Tensor& C,
                                     const std::optional<torch::Tensor>& D, const std::optional<torch::Tensor>& z,
                                     const std::optional<torch::Tensor>& dt_bias, bool dt_softplus,
                                     const std::optional<torch::Tensor>& rows = {});

}  // namespace seqloom::ops
