#include "train/chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace seqloom {
namespace {

constexpr double kLeft = 62, kRight = 16, kTop = 30, kBottom = 46;
constexpr double kNameHeight = 15, kNameGap = 26, kLetter = 7;  // of names at the lines' ends
constexpr size_t kKinds = 8;                                    // of colours, dashes and markers
constexpr size_t kMarkersOfLine = 8;                            // at the most: more would hide the line

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
std::vector<double> binary_ticks(double low, double high) {
  const double first = std::ceil(std::log2(low) - 1e-9), last = std::floor(std::log2(high) + 1e-9);
  const double step = std::max(1.0, std::ceil((last - first + 1) / 6));
  std::vector<double> at;
  for (int i = 0; i < 6; ++i) {
    if (first + i * step <= last) at.push_back(std::exp2(first + i * step));
  }
  return at.size() < 2 ? linear_ticks(low, high) : at;
}

/// 1, 2 and 5 times powers of ten in [low, high], over more than two decades the powers alone.
std::vector<double> decimal_ticks(double low, double high) {
  const bool all = high / low < 100;
  std::vector<double> at;
  for (double power = std::pow(10, std::floor(std::log10(low))); power <= high; power *= 10) {
    for (const double unit : {1, 2, 5}) {
      if ((unit == 1 || all) && power * unit >= low && power * unit <= high) at.push_back(power * unit);
    }
  }
  if (at.size() < 2) return linear_ticks(low, high);
  const size_t stride = (at.size() + 11) / 12;
  std::vector<double> few;
  for (size_t i = 0; i < at.size(); i += stride) few.push_back(at[i]);
  return few;
}

std::string tick_text(double value) {
  if (std::abs(value) < 1e4 || std::abs(value) >= 1e9) return fmt::format("{:.4g}", value);
  return std::abs(value) < 1e6 ? fmt::format("{:.4g}k", value / 1e3) : fmt::format("{:.4g}M", value / 1e6);
}

bool drawable(const std::pair<double, double>& point, const ChartOptions& options) {
  // Beyond 1e30 differences and powers of coordinates could overflow.
  return std::abs(point.first) < 1e30 && std::abs(point.second) < 1e30 && (!options.log_x || point.first > 1e-30) &&
         (!options.log_y || point.second > 1e-30);
}

std::vector<Series> only_drawable(std::vector<Series> series, const ChartOptions& options) {
  for (auto& one : series) {
    std::erase_if(one.points, [&](const auto& point) { return !drawable(point, options); });
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

std::string line(size_t index, const std::string& points, bool bold = false) {
  return fmt::format("<polyline class='line s{}{}' points='{}' stroke-dasharray='{}'/>", kind(index),
                     bold ? " bold" : "", points, bold ? "" : kDashes[kind(index)]);
}

std::string axes_svg(const Axis& x, const Axis& y, const ChartOptions& options) {
  std::string svg = fmt::format("<text class='title' x='{}' y='16'>{}</text>", kLeft, html_escape(options.title));
  for (const double t : options.log_y ? decimal_ticks(y.low, y.high) : linear_ticks(y.low, y.high)) {
    svg += fmt::format("<line class='grid' x1='{0}' x2='{1}' y1='{2:.1f}' y2='{2:.1f}'/>", x.from, x.to, y.at(t));
    svg += fmt::format("<text x='{}' y='{:.1f}' text-anchor='end'>{}</text>", kLeft - 6, y.at(t) + 4, tick_text(t));
  }
  for (const double t : options.log_x ? binary_ticks(x.low, x.high) : linear_ticks(x.low, x.high)) {
    svg += fmt::format("<line class='grid' x1='{0:.1f}' x2='{0:.1f}' y1='{1}' y2='{2}'/>", x.at(t), y.from, y.to);
    svg += fmt::format("<text x='{:.1f}' y='{}' text-anchor='middle'>{}</text>", x.at(t), y.from + 16, tick_text(t));
  }
  svg += fmt::format("<text x='{:.1f}' y='{}' text-anchor='middle'>{}</text>", (x.from + x.to) / 2, options.height - 8,
                     html_escape(options.x_label));
  return svg + fmt::format("<text transform='translate(14 {:.1f}) rotate(-90)' text-anchor='middle'>{}</text>",
                           (y.from + y.to) / 2, html_escape(options.y_label));
}

std::string series_svg(const Series& series, size_t index, const Axis& x, const Axis& y, const ChartOptions& options) {
  const bool lines = options.lines;
  std::string svg, points;
  for (const auto& [px, py] : series.points) points += fmt::format("{:.1f},{:.1f} ", x.at(px), y.at(py));
  if (lines) svg += line(index, points, series.name == options.bold);
  const size_t count = series.points.size(), stride = lines ? (count + kMarkersOfLine - 1) / kMarkersOfLine : 1;
  // Each line begins its markers at another point, so that they do not cover each other.
  for (size_t i = stride > 1 ? index % kKinds * stride / kKinds : 0; i < count; i += stride) {
    const auto& [px, py] = series.points[i];
    svg += marker(index, x.at(px), y.at(py), fmt::format("{}: {:.4g}, {:.4g}", series.name, px, py));
  }
  return svg;
}

/// Heights for names that want to be at `wanted`: in their order, no two closer than a name is high, within [low, high]
/// as far as there is room.
std::vector<double> spread(const std::vector<double>& wanted, double low, double high) {
  std::vector<double> at = wanted;
  for (size_t i = 0; i < at.size(); ++i) at[i] = std::max(at[i], i == 0 ? low : at[i - 1] + kNameHeight);
  for (size_t i = at.size(); i-- > 0;) {
    at[i] = std::min(at[i], i + 1 == at.size() ? high : at[i + 1] - kNameHeight);
  }
  return at;
}

/// The name of every series, right of the chart and tied to the end of its line.
std::string names_svg(const std::vector<Series>& series, const Axis& x, const Axis& y, const ChartOptions& options) {
  std::vector<size_t> order;
  for (size_t i = 0; i < series.size(); ++i) {
    if (!series[i].points.empty()) order.push_back(i);
  }
  const auto end = [&](size_t i) { return y.at(series[i].points.back().second); };
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return end(a) < end(b); });
  std::vector<double> wanted;
  for (const size_t i : order) wanted.push_back(end(i));
  const std::vector<double> heights = spread(wanted, y.to, y.from);
  std::string svg;
  for (size_t place = 0; place < order.size(); ++place) {
    const size_t i = order[place];
    svg += fmt::format("<path class='tie s{}' d='M{:.1f} {:.1f}L{:.1f} {:.1f}'/>", kind(i),
                       x.at(series[i].points.back().first), wanted[place], x.to + kNameGap - 4, heights[place]);
    svg += fmt::format("<text class='name s{}{}' x='{:.1f}' y='{:.1f}'>{}</text>", kind(i),
                       series[i].name == options.bold ? " bold" : "", x.to + kNameGap, heights[place] + 4,
                       html_escape(series[i].name));
  }
  return svg;
}

double right_margin(const std::vector<Series>& series, const ChartOptions& options) {
  if (!options.names) return kRight;
  size_t longest = 0;
  for (const auto& one : series) longest = std::max(longest, one.name.size());
  return kNameGap + kLetter * static_cast<double>(longest) + 8;
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

std::string chart_group(const std::vector<Series>& all, const ChartOptions& options) {
  const auto series = only_drawable(all, options);
  const auto [x_low, x_high] = extent(series, &std::pair<double, double>::first, options.log_x);
  const auto [y_low, y_high] = extent(series, &std::pair<double, double>::second, options.log_y);
  const double inset = options.lines ? 0 : 12;  // points alone must not sit on the frame
  const double right = options.width - right_margin(series, options);
  const Axis x{x_low, x_high, kLeft + inset, right - inset, options.log_x};
  Axis y{y_low, y_high, options.height - kBottom, kTop, options.log_y};
  const double margin = 0.05;
  y.low = options.log_y ? y_low * std::pow(y_high / y_low, -margin) : y_low - margin * (y_high - y_low);
  y.high = options.log_y ? y_high * std::pow(y_high / y_low, margin) : y_high + margin * (y_high - y_low);
  std::string svg = axes_svg(x, y, options);
  for (size_t i = 0; i < series.size(); ++i) svg += series_svg(series[i], i, x, y, options);
  return options.names ? svg + names_svg(series, x, y, options) : svg;
}

std::string chart_svg(const std::vector<Series>& series, const ChartOptions& options) {
  return fmt::format("<svg class='chart' viewBox='0 0 {} {}' role='img' aria-label='{}'>", options.width,
                     options.height, html_escape(options.title)) +
         chart_group(series, options) + "</svg>\n";
}

std::string svg_file(double width, double height, const std::string& title, const std::string& content) {
  return fmt::format(
      "<svg xmlns='http://www.w3.org/2000/svg' width='{0}' height='{1}' viewBox='0 0 {0} {1}' role='img' "
      "aria-label='{2}'>\n<style>{3}</style>\n<rect width='{0}' height='{1}' fill='var(--paper)'/>\n"
      "<g class='chart'>{4}</g>\n</svg>\n",
      width, height, html_escape(title), chart_style(), content);
}

std::string legend_html(const std::vector<std::string>& names) {
  std::string html = "<ul class='legend'>\n";
  for (size_t i = 0; i < names.size(); ++i) {
    html += fmt::format("<li><svg viewBox='0 0 44 14' width='44' height='14' aria-hidden='true'>{}{}</svg>{}</li>\n",
                        line(i, "0,7 44,7"), marker(i, 22, 7, ""), html_escape(names[i]));
  }
  return html + "</ul>\n";
}

std::string chart_style() {
  return R"(
:root { --ink: #1d2126; --paper: #fff; --faint: #d9dde2; }
:root { --s0: #0067a5; --s1: #c44e00; --s2: #007d5a; --s3: #b0408a; --s4: #8f6a00; --s5: #2b7f99; --s6: #555; --s7: #7a3e00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ea; --paper: #16191d; --faint: #3a4047; }
  :root { --s0: #5ab4f0; --s1: #ff9350; --s2: #38d3a2; --s3: #f09acd; --s4: #f2cc4d; --s5: #8be0ee; --s6: #c3c8cd; --s7: #d3a173; }
}
.s0 { color: var(--s0); } .s1 { color: var(--s1); } .s2 { color: var(--s2); } .s3 { color: var(--s3); }
.s4 { color: var(--s4); } .s5 { color: var(--s5); } .s6 { color: var(--s6); } .s7 { color: var(--s7); }
.line { fill: none; stroke: currentColor; stroke-width: 1.8; stroke-linejoin: round; } .mark { fill: currentColor; }
.line.bold { stroke-width: 4; color: var(--ink); } .tie { fill: none; stroke: currentColor; stroke-width: 0.8; opacity: 0.6; }
.chart { width: 100%; height: auto; } .chart text { font: 12px system-ui, sans-serif; fill: var(--ink); }
.chart text.title { font-weight: 600; font-size: 13px; } .chart .grid { stroke: var(--faint); stroke-width: 1; }
.chart text.name { fill: currentColor; } .chart text.bold { font-weight: 700; fill: var(--ink); }
.legend { display: flex; flex-wrap: wrap; gap: 0.3rem 1.4rem; padding: 0; margin: 0.5rem 0 1rem; list-style: none; }
.legend svg { margin-right: 0.5rem; vertical-align: -1px; }
.matrix { width: 100%; height: auto; shape-rendering: crispEdges; } .matrix .back { fill: var(--faint); fill-opacity: 0.35; }
.matrix path { fill: none; stroke-width: 1; } .matrix .plus { stroke: var(--s0); } .matrix .minus { stroke: var(--s1); }
)";
}

}  // namespace seqloom
