#pragma once

#include <optional>

#include "base/torch.h"

namespace seqloom::ops {

/// The next tokens of `causal_conv1d` for a batch whose inputs are kept in one tensor, as decoders in Python have it.
/// x [B, E, T]; state [B, E, L], L >= W - 1, in any floating type: the last L inputs, changed in place; weight [E, W];
/// bias [E]. With `seen` [B] (int32 or int64) the state is a ring: input i of a row lies at i modulo L, and x_0 is
/// input seen[b]. With `rows` [B] row b of x has the state rows[b] of [R, E, L]; a negative one means none, and its y
/// is 0. Returns y [B, E, T] in x's type. No gradient.
torch::Tensor causal_conv1d_update(const torch::Tensor& x, const torch::Tensor& state, const torch::Tensor& weight,
                                   const std::optional<torch::Tensor>& bias, bool silu,
                                   const std::optional<torch::Tensor>& seen = {},
                                   const std::optional<torch::Tensor>& rows = {});

}  // namespace seqloom::ops
