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
  bool log_x = false, log_y = false;
  bool names = false;                // each line's name at its end, where no legend stands beside the chart
  std::string bold{};                // the name of the series that the others are compared with
  double width = 460, height = 300;  // pixels
};

/// An SVG picture of series, told apart by colour, dash and marker (up to eight of each); the legend is
/// `legend_html`. Text is escaped. Points that are not finite are left out. Colours are the classes s0 .. s7 of
/// `chart_style`.
std::string chart_svg(const std::vector<Series>& series, const ChartOptions& options);

/// The same without the <svg> round it, to stand in a larger picture.
std::string chart_group(const std::vector<Series>& series, const ChartOptions& options);

/// A picture as a file of its own, with the style that `content` (charts and what uses their classes) needs.
std::string svg_file(double width, double height, const std::string& title, const std::string& content);

/// What tells the series of these names apart, in their order.
std::string legend_html(const std::vector<std::string>& names);

/// The style sheet that the pictures need, for light and dark pages.
std::string chart_style();

/// Text for HTML and SVG.
std::string html_escape(const std::string& text);

}  // namespace seqloom
