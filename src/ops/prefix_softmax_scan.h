#pragma once

#include <cstdint>
#include <optional>
#include <utility>

#include "base/torch.h"
#include "ops/attention.h"

namespace seqloom::ops {

/// Softmax attention of one fixed query over every prefix (Feng et al. 2024, arXiv 2405.13956):
///   y_t = sum_{i <= t} e^{s_i} v_i / sum_{i <= t} e^{s_i}
/// s [B, H, T] scores, below +inf; v [B, H, T, d]; mask broadcasts to s, false or 0: the token is not there; `initial`
/// is the partial of the tokens before. Returns y [B, H, T, d], 0 where nothing was seen yet, and the partial of all
/// tokens in at least float32. Maxima are taken over prefixes, never over all tokens: a late huge score must not
/// underflow the outputs before it. They are constants to autograd: gradients go through u and w alone, and are those
/// of every quantity that does not depend on the choice of m.
/// Packed sequences lie one after the other in B = 1, sequence r in tokens cu_seqlens[r] .. cu_seqlens[r + 1] (int64 or
/// int32 [S + 1]); partials are then [S, H] and [S, H, d].
/// Throws UsageError for a wrong shape and for a score that is NaN or +inf.
std::pair<torch::Tensor, SoftmaxPartial> prefix_softmax_scan(const torch::Tensor& s, const torch::Tensor& v,
                                                             const std::optional<torch::Tensor>& mask,
                                                             const std::optional<SoftmaxPartial>& initial,
                                                             const std::optional<torch::Tensor>& cu_seqlens = {},
                                                             int64_t chunk = 32);

/// The partial of all tokens alone, one reduction: s [..., T], v [..., T, d] -> m, u [...], w [..., d].
SoftmaxPartial softmax_total(const torch::Tensor& s, const torch::Tensor& v);

}  // namespace seqloom::ops
