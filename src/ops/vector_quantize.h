#pragma once

#include <optional>
#include <tuple>

#include "base/torch.h"

namespace seqloom::ops {

/// The S codewords of each head, c_sum / max(c_count, count_min), which no gradient reaches.
/// c_sum [H, S, K], c_count [H, S] -> [H, S, K] in at least float32.
torch::Tensor codebook(const torch::Tensor& c_sum, const torch::Tensor& c_count, double count_min);

/// Replaces each vector by the nearest codeword (van den Oord et al. 2017, arXiv 1711.00937; for keys of attention
/// Lingle 2023, arXiv 2309.16354). x [B, H, L, K], codewords [H, S, K], keep [B, L] bool, false: padding. Returns
///   codes        [B, H, L] int64, the first of equally near ones
///   y            [B, H, L, K] the codewords; x gets y's gradient (straight through)
///   commit_loss  mean over all B L positions of sum_h |x - codeword|^2, padding counting 0
std::tuple<torch::Tensor, torch::Tensor, torch::Tensor> vector_quantize(const torch::Tensor& x,
                                                                        const torch::Tensor& codewords,
                                                                        const std::optional<torch::Tensor>& keep);

/// The sum of the vectors of each code and their number: values [..., L, V], codes [..., L] of which -1 counts nowhere
/// -> [..., S, V], [..., S]. The sums are differentiable.
std::tuple<torch::Tensor, torch::Tensor> sums_by_code(const torch::Tensor& values, const torch::Tensor& codes,
                                                      int64_t codewords);

}  // namespace seqloom::ops
