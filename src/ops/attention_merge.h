#pragma once

#include <utility>

#include "base/torch.h"

namespace seqloom::ops {

/// Attention over two sets of keys from the attention over each: o1, o2 [..., d] and the logarithms of the sums of
/// e^score, lse1, lse2 [...]; a set of no keys has o = 0 and lse = -inf, the identity. Associative and commutative, so
/// that keys may be split over segments and machines (Liu et al. 2023, arXiv 2310.01889). Returns o and lse.
std::pair<torch::Tensor, torch::Tensor> attention_merge(const torch::Tensor& o1, const torch::Tensor& lse1,
                                                        const torch::Tensor& o2, const torch::Tensor& lse2);

}  // namespace seqloom::ops
