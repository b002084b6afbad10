#include "train/chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

namespace seqloom {
namespace {

constexpr double kWidth = 560, kHeight = 320, kLeft = 64, kRight = 150, kTop = 34, kBottom = 46;

// Okabe & Ito's palette, told apart by colour-blind readers as well; dashes and markers repeat the distinction.
constexpr std::array<const char*, 8> kColours = {"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                                 "#e69f00", "#56b4e9", "#8c510a", "#7f7f7f"};
constexpr std::array<const char*, 8> kDashes = {"", "7 3", "2 3", "9 3 2 3", "12 4", "4 2", "1 2", "6 2 1 2 1 2"};

/// A range of data on a range of pixels.
struct Axis {
  double low, high, from, to;
  bool logarithmic = false;

  double at(double value) const {
    const auto place = [&](double v) { return logarithmic ? std::log2(v) : v; };
    return from + (place(value) - place(low)) / (place(high) - place(low)) * (to - from);
  }
};

/// About five round numbers in [low, high].
std::vector<double> ticks(double low, double high) {
  const double raw = (high - low) / 5, power = std::pow(10, std::floor(std::log10(raw)));
  const double step = raw / power < 1.5   ? power
                      : raw / power < 3.5 ? 2 * power
                      : raw / power < 7.5 ? 5 * power
                                          : 10 * power;
  std::vector<double> at;
  for (double t = std::ceil(low / step) * step; t <= high + step * 1e-9; t += step)
    at.push_back(std::abs(t) < step * 1e-9 ? 0 : t);
  return at;
}

std::vector<Series> finite(const std::vector<Series>& series, bool positive_x) {
  std::vector<Series> kept;
  for (const auto& one : series) {
    Series copy{one.name, {}};
    for (const auto& point : one.points) {
      if (std::isfinite(point.first) && std::isfinite(point.second) && (!positive_x || point.first > 0))
        copy.points.push_back(point);
    }
    kept.push_back(std::move(copy));
  }
  return kept;
}

std::pair<double, double> extent(const std::vector<Series>& series, bool of_x) {
  double low = INFINITY, high = -INFINITY;
  for (const auto& one : series) {
    for (const auto& point : one.points) {
      low = std::min(low, of_x ? point.first : point.second);
      high = std::max(high, of_x ? point.first : point.second);
    }
  }
  if (low > high) return {0, 1};
  if (low == high) return {low - 0.5, high + 0.5};
  return {low, high};
}

std::string marker(size_t index, double x, double y) {
  const char* colour = kColours[index % kColours.size()];
  switch (index % 4) {
    case 0:
      return fmt::format("<circle cx='{:.1f}' cy='{:.1f}' r='3.4' fill='{}'/>", x, y, colour);
    case 1:
      return fmt::format("<rect x='{:.1f}' y='{:.1f}' width='6.4' height='6.4' fill='{}'/>", x - 3.2, y - 3.2, colour);
    case 2:
      return fmt::format("<path d='M{:.1f} {:.1f}l4 7h-8z' fill='{}'/>", x, y - 4, colour);
    default:
      return fmt::format("<path d='M{:.1f} {:.1f}l4 4l-4 4l-4 -4z' fill='{}'/>", x, y - 4, colour);
  }
}

std::string axes(const Axis& x, const Axis& y, const std::vector<double>& x_ticks, const ChartOptions& options) {
  std::string svg = fmt::format("<text class='title' x='{}' y='18'>{}</text>", kLeft, html_escape(options.title));
  for (const double t : ticks(y.low, y.high)) {
    svg += fmt::format(
        "<line class='grid' x1='{}' x2='{}' y1='{:.1f}' y2='{:.1f}'/><text x='{}' y='{:.1f}' "
        "text-anchor='end'>{:g}</text>",
        x.from, x.to, y.at(t), y.at(t), kLeft - 6, y.at(t) + 4, t);
  }
  for (const double t : x_ticks) {
    svg += fmt::format(
        "<line class='grid' x1='{0:.1f}' x2='{0:.1f}' y1='{1}' y2='{2}'/><text x='{0:.1f}' y='{3}' "
        "text-anchor='middle'>{4:g}</text>",
        x.at(t), y.from, y.to, y.from + 16, t);
  }
  svg += fmt::format("<text x='{:.1f}' y='{}' text-anchor='middle'>{}</text>", (x.from + x.to) / 2, kHeight - 8,
                     html_escape(options.x_label));
  return svg + fmt::format("<text transform='translate(14 {:.1f}) rotate(-90)' text-anchor='middle'>{}</text>",
                           (y.from + y.to) / 2, html_escape(options.y_label));
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
  const auto series = finite(all, options.log_x);
  const auto [x_low, x_high] = extent(series, true);
  const auto [y_low, y_high] = extent(series, false);
  const double margin = 0.05 * (y_high - y_low);
  const Axis x{x_low, x_high, kLeft, kWidth - kRight, options.log_x};
  const Axis y{y_low - margin, y_high + margin, kHeight - kBottom, kTop};
  std::vector<double> x_ticks = ticks(x_low, x_high);
  if (options.log_x) {  // a tick at every point: they are few, and powers of two
    x_ticks.clear();
    for (const auto& one : series) {
      for (const auto& point : one.points) x_ticks.push_back(point.first);
    }
    std::sort(x_ticks.begin(), x_ticks.end());
    x_ticks.erase(std::unique(x_ticks.begin(), x_ticks.end()), x_ticks.end());
  }
  std::string svg =
      fmt::format("<svg viewBox='0 0 {} {}' role='img' aria-label='{}'>", kWidth, kHeight, html_escape(options.title));
  svg += axes(x, y, x_ticks, options);
  for (size_t i = 0; i < series.size(); ++i) {
    const char *colour = kColours[i % kColours.size()], *dash = kDashes[i % kDashes.size()];
    std::string path;
    for (const auto& [px, py] : series[i].points) path += fmt::format("{:.1f},{:.1f} ", x.at(px), y.at(py));
    if (options.lines) {
      svg += fmt::format("<polyline points='{}' fill='none' stroke='{}' stroke-width='1.8' stroke-dasharray='{}'/>",
                         path, colour, dash);
    }
    if (series[i].points.size() <= 24) {
      for (const auto& [px, py] : series[i].points) svg += marker(i, x.at(px), y.at(py));
    }
    const double row = kTop + 8 + 18 * static_cast<double>(i);
    svg +=
        fmt::format("<line x1='{0}' x2='{1}' y1='{2}' y2='{2}' stroke='{3}' stroke-width='2' stroke-dasharray='{4}'/>",
                    kWidth - kRight + 12, kWidth - kRight + 34, row, colour, options.lines ? dash : "");
    svg += marker(i, kWidth - kRight + 23, row);
    svg += fmt::format("<text x='{}' y='{}'>{}</text>", kWidth - kRight + 40, row + 4, html_escape(series[i].name));
  }
  return svg + "</svg>";
}

}  // namespace seqloom
