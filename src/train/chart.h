#pragma once

#include <string>
#include <utility>
#include <vector>

#include "base/torch.h"

namespace seqloom {

/// One line or set of points of a chart.
struct Series {
  std::string name;
  std::vector<std::pair<double, double>> points;
};

struct ChartOptions {
  std::string title, x_label, y_label;
  bool lines = true;  // false: points only
  bool log_x = false;
};

/// An SVG picture of series, told apart by colour, dash and marker (up to eight of each); the legend is
/// `legend_html`. Text is escaped. Points that are not finite are left out. Colours are the classes s0 .. s7 of
/// `chart_style`.
std::string chart_svg(const std::vector<Series>& series, const ChartOptions& options);

/// What tells the series of these names apart, in their order.
std::string legend_html(const std::vector<std::string>& names);

/// A matrix [T, T] as a picture: a cell's strength is its size against the largest of its row, its colour the sign.
/// Matrices beyond 96 x 96 are shrunk to their strongest entries.
std::string matrix_svg(const torch::Tensor& matrix, const std::string& title);

/// The style sheet that the pictures need, for light and dark pages.
std::string chart_style();

/// Text for HTML and SVG.
std::string html_escape(const std::string& text);

}  // namespace seqloom
