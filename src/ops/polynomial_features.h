#pragma once

#include <cstdint>

#include "base/torch.h"

namespace seqloom::ops {

/// coeff_0 + sum_j coeff_j x^j for every element. x [..., d], coeff [degree + 1] -> [..., d].
torch::Tensor elementwise_polynomial(const torch::Tensor& x, const torch::Tensor& coeff);

/// All monomials of degree <= p = coeff.size(0) - 1, so that <phi(q), phi(k)> = sum_j coeff_j^2 (q . k)^j: a matrix
/// that is read by phi(q) holds O(d^p) pairs instead of O(d) (Behrouz et al. 2025, arXiv 2505.23735). x [..., d] ->
/// [..., C(d + p, p)], by degree, inside a degree the non-decreasing index tuples in lexicographic order, each coeff_j
/// sqrt(multinomial) prod x_i. Throws UsageError when this is wider than kWidestFeatures.
torch::Tensor polynomial_features(const torch::Tensor& x, const torch::Tensor& coeff);

inline constexpr int64_t kWidestFeatures = 4096;

/// C(d + degree, degree). Throws UsageError for degree < 1 and, naming the width, above kWidestFeatures.
int64_t polynomial_width(int64_t d, int64_t degree);

}  // namespace seqloom::ops
