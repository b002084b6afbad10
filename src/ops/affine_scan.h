#pragma once

#include <optional>
#include <tuple>

#include "base/torch.h"

namespace seqloom::ops {

/// h_t = a_t h_{t-1} + b_t: the monoid of every diagonal recurrence, (a1, b1) o (a2, b2) = (a2 a1, a2 b1 + b2).
/// a, b [B, T, ...] real or complex, a of any sign and also 0; initial_state [B, ...], zero when absent.
/// Packed sequences lie one after the other in B = 1, sequence s in tokens cu_seqlens[s] .. cu_seqlens[s + 1] (int64 or
/// int32 [S + 1]); states are then [S, ...].
/// Returns every h_t [B, T, ...] and the last one [B, ...]. No division and no logarithm: pairs are combined in a tree
/// of depth log T.
std::tuple<torch::Tensor, torch::Tensor> affine_scan(const torch::Tensor& a, const torch::Tensor& b,
                                                     const std::optional<torch::Tensor>& initial_state,
                                                     const std::optional<torch::Tensor>& cu_seqlens = {});

}  // namespace seqloom::ops
