#pragma once
#include <string>
#include <utility>
#include <vector>

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

/// An SVG picture of up to eight series, told apart by colour, dash and marker. Text is escaped. Points that are not
/// finite are left out.
std::string chart_svg(const std::vector<Series>& series, const ChartOptions& options);

/// Text for HTML and SVG.
std::string html_escape(const std::string& text);

}  // namespace seqloom
