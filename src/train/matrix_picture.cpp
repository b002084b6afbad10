#include "train/matrix_picture.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "train/chart.h"

namespace seqloom {
namespace {

constexpr int64_t kLargestPicture = 96;
constexpr int kShades = 12;

/// Blocks become their entry of greatest absolute value.
torch::Tensor shrunk(const torch::Tensor& matrix) {
  const int64_t block = (matrix.size(0) + kLargestPicture - 1) / kLargestPicture;
  if (block <= 1) return matrix;
  const auto strongest = [&](const torch::Tensor& part) {
    return torch::max_pool2d(part.clamp_min(0).view({1, 1, part.size(0), part.size(1)}), block, block, 0, 1,
                             true)[0][0];
  };
  const torch::Tensor above = strongest(matrix), below = strongest(-matrix);
  return torch::where(above >= below, above, -below);
}

/// One path for all cells of one shade and sign: runs along the rows, a stroke as wide as a cell.
std::string cells(const torch::Tensor& shades, int shade) {
  const auto at = shades.accessor<int, 2>();
  std::string path;
  for (int64_t r = 0; r < shades.size(0); ++r) {
    for (int64_t c = 0; c < shades.size(1);) {
      int64_t end = c;
      while (end < shades.size(1) && at[r][end] == shade) ++end;
      if (end > c) path += fmt::format("M{} {}.5h{}", c, r, end - c);
      c = std::max(end, c + 1);
    }
  }
  return path;
}

}  // namespace

std::string matrix_svg(const torch::Tensor& matrix, const std::string& title) {
  const torch::Tensor picture = shrunk(matrix.to(torch::kFloat32).nan_to_num(0, 0, 0));
  const torch::Tensor strength = picture / picture.abs().amax(1, true).clamp_min(1e-30);
  const torch::Tensor shades = (strength * kShades).round().to(torch::kInt32).contiguous();
  std::string svg = fmt::format("<svg class='matrix' viewBox='0 0 {} {}' role='img' aria-label='{}'>", picture.size(1),
                                picture.size(0), html_escape(title));
  svg += fmt::format("<rect class='back' width='{}' height='{}'/>", picture.size(1), picture.size(0));
  for (int shade = -kShades; shade <= kShades; ++shade) {
    if (shade == 0) continue;
    const std::string path = cells(shades, shade);
    if (path.empty()) continue;
    svg += fmt::format("<path class='{}' stroke-opacity='{:.2f}' d='{}'/>", shade > 0 ? "plus" : "minus",
                       std::abs(shade) / static_cast<double>(kShades), path);
  }
  return svg + "</svg>\n";
}

}  // namespace seqloom
