#pragma once

#include <array>
#include <cstdint>

#include "base/torch.h"

namespace seqloom::ops {

/// The quintic of the Muon optimiser (Jordan et al. 2024), which drives singular values to about 1 in few steps.
inline constexpr std::array<double, 3> kMuonQuintic = {3.4445, -4.7750, 2.0315};

/// An approximate polar factor of every matrix of x [..., m, n]: X / (|X|_F + eps), then `steps` times
///   A = X X^T,   X <- a X + (b A + c A^2) X
/// transposed meanwhile where m > n. Singular values end within about 0.7 .. 1.2, whatever the scale of x; a zero
/// matrix stays zero. Computed in at least float32; the type of x is kept.
torch::Tensor newton_schulz(const torch::Tensor& x, int64_t steps = 5,
                            const std::array<double, 3>& quintic = kMuonQuintic, double eps = 1e-7);

/// The symmetric F [..., m, m] with newton_schulz(X) = F X for every X [..., m, n] that has X X^T = gram. All its work
/// is m x m, whatever n, and F may be applied to a few vectors of X only. For tall X take X^T X and X F. At most 12
/// steps. Twice differentiable; the gradient is that of a function of symmetric matrices. Keeps gram alone for the
/// backward pass. Works in float64, since squaring X costs digits: for X in float32, form gram in float64 as well.
torch::Tensor newton_schulz_factor(const torch::Tensor& gram, int64_t steps = 5,
                                   const std::array<double, 3>& quintic = kMuonQuintic, double eps = 1e-7);

}  // namespace seqloom::ops
