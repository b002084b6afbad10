#pragma once

#include <string>

#include "base/torch.h"

namespace seqloom {

/// A matrix [T, T] as a picture: a cell's strength is its size against the largest of its row, its colour the sign.
/// Matrices beyond 96 x 96 are shrunk to their strongest entries. Needs `chart_style`.
std::string matrix_svg(const torch::Tensor& matrix, const std::string& title);

}  // namespace seqloom
