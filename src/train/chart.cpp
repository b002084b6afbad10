#include "train/chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace seqloom {
namespace {

constexpr double kWidth = 460, kHeight = 300, kLeft = 62, kRight = 16, kTop = 30, kBottom = 46;
constexpr size_t kKinds = 8;          // of colours, dashes and markers
constexpr size_t kMarkersOfLine = 8;  // at the most: more would hide the line

// Colours, dashes and markers each tell series apart, so that a reader of any colour vision finds one that does.
constexpr std::array<const char*, kKinds> kDashes = {"", "7 3", "2 3", "9 3 2 3", "14 4", "4 2", "1 2", "6 2 1 2 1 2"};
constexpr std::array<const char*, kKinds> kMarkers = {
    "m-3.6 0a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0-7.2 0z",  // disc
    "m-3.3-3.3h6.6v6.6h-6.6z",                           // square
    "m0-4.4l4.2 7.4h-8.4z",                              // triangle
    "m0-4.8l4.8 4.8l-4.8 4.8l-4.8-4.8z",                 // diamond
    "m0 4.4l4.2-7.4h-8.4z",                              // triangle on its tip
    "m-1.3-4.3h2.6v3h3v2.6h-3v3h-2.6v-3h-3v-2.6h3z",     // plus
    "m-4.2-2.6l1.6-1.6 2.6 2.6 2.6-2.6 1.6 1.6-2.6 2.6 2.6 2.6-1.6 1.6-2.6-2.6-2.6 2.6-1.6-1.6 2.6-2.6z",  // cross
    "m-4.2 1.2h8.4v-2.4h-8.4z",                                                                            // bar
};

size_t kind(size_t index) {
  return index % kKinds;
}
/// Beyond eight series colours repeat, with other markers.
size_t marker_kind(size_t index) {
  return (index + index / kKinds) % kKinds;
}

/// A range of data on a range of pixels.
struct Axis {
  double low, high, from, to;
  bool logarithmic = false;

  double place(double value) const { return logarithmic ? std::log2(value) : value; }
  double at(double value) const {
    return from + (place(value) - place(low)) / (place(high) - place(low)) * (to - from);
  }
};

/// About five round numbers in [low, high].
std::vector<double> linear_ticks(double low, double high) {
  const double raw = (high - low) / 5, power = std::pow(10, std::floor(std::log10(raw)));
  const double unit = raw / power;
  const double step = power * (unit < 1.5 ? 1 : unit < 3.5 ? 2 : unit < 7.5 ? 5 : 10);
  const double first = std::ceil(low / step);
  std::vector<double> at;
  for (int i = 0; i <= 10; ++i) {  // counted: adding the step to a large number may not change it
    const double tick = (first + i) * step;
    if (tick <= high + step * 1e-9) at.push_back(tick == 0 ? 0 : tick);  // no "-0"
  }
  return at;
}

/// Two to six powers of two in [low, high], other round numbers where it holds fewer.
std::vector<double> log_ticks(double low, double high) {
  const double first = std::ceil(std::log2(low) - 1e-9), last = std::floor(std::log2(high) + 1e-9);
  const double step = std::max(1.0, std::ceil((last - first + 1) / 6));
  std::vector<double> at;
  for (int i = 0; i < 6; ++i) {
    if (first + i * step <= last) at.push_back(std::exp2(first + i * step));
  }
  return at.size() < 2 ? linear_ticks(low, high) : at;
}

bool drawable(const std::pair<double, double>& point, bool log_x) {
  // Beyond 1e30 differences and powers of coordinates could overflow.
  return std::abs(point.first) < 1e30 && std::abs(point.second) < 1e30 && (!log_x || point.first > 1e-30);
}

std::vector<Series> only_drawable(std::vector<Series> series, bool log_x) {
  for (auto& one : series) {
    std::erase_if(one.points, [&](const auto& point) { return !drawable(point, log_x); });
  }
  return series;
}

/// The least and the greatest coordinate; something around it where they agree or there are none.
std::pair<double, double> extent(const std::vector<Series>& series, double std::pair<double, double>::*coordinate,
                                 bool logarithmic) {
  double low = std::numeric_limits<double>::infinity(), high = -low;
  for (const auto& one : series) {
    for (const auto& point : one.points) {
      low = std::min(low, point.*coordinate);
      high = std::max(high, point.*coordinate);
    }
  }
  if (low > high) return {1, 2};
  if (high - low > 1e-12 * std::max(std::abs(low), std::abs(high))) return {low, high};
  if (logarithmic) return {low / 2, high * 2};
  const double around = std::max(0.5, std::abs(low) / 2);
  return {low - around, high + around};
}

std::string marker(size_t index, double x, double y, const std::string& tip) {
  return fmt::format("<path class='mark s{}' d='M{:.1f} {:.1f}{}'>{}</path>", kind(index), x, y,
                     kMarkers[marker_kind(index)], tip.empty() ? "" : "<title>" + html_escape(tip) + "</title>");
}

std::string line(size_t index, const std::string& points) {
  return fmt::format("<polyline class='line s{}' points='{}' stroke-dasharray='{}'/>", kind(index), points,
                     kDashes[kind(index)]);
}

std::string axes_svg(const Axis& x, const Axis& y, const ChartOptions& options) {
  std::string svg = fmt::format("<text class='title' x='{}' y='16'>{}</text>", kLeft, html_escape(options.title));
  for (const double t : linear_ticks(y.low, y.high)) {
    svg += fmt::format("<line class='grid' x1='{0}' x2='{1}' y1='{2:.1f}' y2='{2:.1f}'/>", x.from, x.to, y.at(t));
    svg += fmt::format("<text x='{}' y='{:.1f}' text-anchor='end'>{:.4g}</text>", kLeft - 6, y.at(t) + 4, t);
  }
  for (const double t : options.log_x ? log_ticks(x.low, x.high) : linear_ticks(x.low, x.high)) {
    svg += fmt::format("<line class='grid' x1='{0:.1f}' x2='{0:.1f}' y1='{1}' y2='{2}'/>", x.at(t), y.from, y.to);
    svg += fmt::format("<text x='{:.1f}' y='{}' text-anchor='middle'>{:.4g}</text>", x.at(t), y.from + 16, t);
  }
  svg += fmt::format("<text x='{:.1f}' y='{}' text-anchor='middle'>{}</text>", (x.from + x.to) / 2, kHeight - 8,
                     html_escape(options.x_label));
  return svg + fmt::format("<text transform='translate(14 {:.1f}) rotate(-90)' text-anchor='middle'>{}</text>",
                           (y.from + y.to) / 2, html_escape(options.y_label));
}

std::string series_svg(const Series& series, size_t index, const Axis& x, const Axis& y, bool lines) {
  std::string svg, points;
  for (const auto& [px, py] : series.points) points += fmt::format("{:.1f},{:.1f} ", x.at(px), y.at(py));
  if (lines) svg += line(index, points);
  const size_t count = series.points.size(), stride = lines ? (count + kMarkersOfLine - 1) / kMarkersOfLine : 1;
  // Each line begins its markers at another point, so that they do not cover each other.
  for (size_t i = stride > 1 ? index % kKinds * stride / kKinds : 0; i < count; i += stride) {
    const auto& [px, py] = series.points[i];
    svg += marker(index, x.at(px), y.at(py), fmt::format("{}: {:.4g}, {:.4g}", series.name, px, py));
  }
  return svg;
}

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

std::string html_escape(const std::string& text) {
  std::string safe;
  for (const char c : text) {
    switch (c) {
      case '&':
        safe += "&amp;";
        break;
      case '<':
        safe += "&lt;";
        break;
      case '>':
        safe += "&gt;";
        break;
      case '"':
        safe += "&quot;";
        break;
      case '\'':
        safe += "&#39;";
        break;
      default:
        safe += c;
    }
  }
  return safe;
}

std::string chart_svg(const std::vector<Series>& all, const ChartOptions& options) {
  const auto series = only_drawable(all, options.log_x);
  const auto [x_low, x_high] = extent(series, &std::pair<double, double>::first, options.log_x);
  const auto [y_low, y_high] = extent(series, &std::pair<double, double>::second, false);
  const double margin = 0.05 * (y_high - y_low);
  const double inset = options.lines ? 0 : 12;  // points alone must not sit on the frame
  const Axis x{x_low, x_high, kLeft + inset, kWidth - kRight - inset, options.log_x};
  const Axis y{y_low - margin, y_high + margin, kHeight - kBottom, kTop};
  std::string svg = fmt::format("<svg class='chart' viewBox='0 0 {} {}' role='img' aria-label='{}'>", kWidth, kHeight,
                                html_escape(options.title));
  svg += axes_svg(x, y, options);
  for (size_t i = 0; i < series.size(); ++i) svg += series_svg(series[i], i, x, y, options.lines);
  return svg + "</svg>\n";
}

std::string legend_html(const std::vector<std::string>& names) {
  std::string html = "<ul class='legend'>\n";
  for (size_t i = 0; i < names.size(); ++i) {
    html += fmt::format("<li><svg viewBox='0 0 44 14' width='44' height='14' aria-hidden='true'>{}{}</svg>{}</li>\n",
                        line(i, "0,7 44,7"), marker(i, 22, 7, ""), html_escape(names[i]));
  }
  return html + "</ul>\n";
}

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

std::string chart_style() {
  return R"(
:root { --s0: #0067a5; --s1: #c44e00; --s2: #007d5a; --s3: #b0408a; --s4: #8f6a00; --s5: #2b7f99; --s6: #555; --s7: #7a3e00; }
@media (prefers-color-scheme: dark) {
  :root { --s0: #5ab4f0; --s1: #ff9350; --s2: #38d3a2; --s3: #f09acd; --s4: #f2cc4d; --s5: #8be0ee; --s6: #c3c8cd; --s7: #d3a173; }
}
.s0 { color: var(--s0); } .s1 { color: var(--s1); } .s2 { color: var(--s2); } .s3 { color: var(--s3); }
.s4 { color: var(--s4); } .s5 { color: var(--s5); } .s6 { color: var(--s6); } .s7 { color: var(--s7); }
.line { fill: none; stroke: currentColor; stroke-width: 1.8; stroke-linejoin: round; } .mark { fill: currentColor; }
.chart { width: 100%; height: auto; } .chart text { font: 12px system-ui, sans-serif; fill: var(--ink); }
.chart text.title { font-weight: 600; font-size: 13px; } .chart .grid { stroke: var(--faint); stroke-width: 1; }
.legend { display: flex; flex-wrap: wrap; gap: 0.3rem 1.4rem; padding: 0; margin: 0.5rem 0 1rem; list-style: none; }
.legend svg { margin-right: 0.5rem; vertical-align: -1px; }
.matrix { width: 100%; height: auto; shape-rendering: crispEdges; } .matrix .back { fill: var(--faint); fill-opacity: 0.35; }
.matrix path { fill: none; stroke-width: 1; } .matrix .plus { stroke: var(--s0); } .matrix .minus { stroke: var(--s1); }
)";
}

}  // namespace seqloom
