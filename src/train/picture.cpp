#include "train/picture.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "train/chart.h"
#include "train/study_series.h"

namespace seqloom {
namespace {

constexpr double kPanelWidth = 480, kPanelHeight = 320, kTitleHeight = 34;
constexpr double kRow = 19, kNameWidth = 150, kValueWidth = 62;  // of bars

struct Panel {
  std::string content;
  double height;
};

/// The metrics of the claim, in its order.
std::vector<std::string> claimed_metrics(const StudyResult& result) {
  std::vector<std::string> names;
  for (const auto& check : result.checks) {
    if (std::find(names.begin(), names.end(), check.check.metric) == names.end()) names.push_back(check.check.metric);
  }
  return names;
}

/// A bar, with its name before and its value behind it, for each variant that has the metric; from 0 on, so that
/// lengths compare. `y` moves on.
std::string bars(const StudyResult& result, const std::string& metric, double& y) {
  const auto value_of = [&](const VariantResult& variant) {
    const auto found = variant.metrics.find(metric);
    return found == variant.metrics.end() ? std::nan("") : found->second;
  };
  double largest = 0;
  for (const auto& variant : result.variants) {
    if (std::isfinite(value_of(variant))) largest = std::max(largest, value_of(variant));
  }
  std::string svg = fmt::format("<text class='title' x='8' y='{:.0f}'>{}</text>", y + 16, html_escape(metric));
  y += 26;
  for (size_t i = 0; i < result.variants.size(); ++i) {
    const double value = value_of(result.variants[i]);
    if (!std::isfinite(value)) continue;
    const double part = largest > 0 ? std::max(0.0, value / largest) : 0;
    const double length = std::max(1.0, part * (kPanelWidth - kNameWidth - kValueWidth));
    svg += fmt::format("<text x='{}' y='{:.0f}' text-anchor='end'>{}</text>", kNameWidth - 8, y + 12,
                       html_escape(result.variants[i].name));
    svg += fmt::format("<path class='mark s{}' d='M{} {:.0f}h{:.1f}v12h-{:.1f}z'/>", i % 8, kNameWidth, y + 2, length,
                       length);
    svg += fmt::format("<text x='{:.1f}' y='{:.0f}'>{:.3g}</text>", kNameWidth + length + 6, y + 12, value);
    y += kRow;
  }
  y += 10;
  return svg;
}

Panel bars_panel(const StudyResult& result) {
  Panel panel{"", 0};
  for (const auto& metric : claimed_metrics(result)) panel.content += bars(result, metric, panel.height);
  return panel;
}

/// Lines that carry their names; variants without points have none.
Panel chart_panel(std::vector<Series> series, ChartOptions options) {
  options.names = true;
  options.width = kPanelWidth;
  options.height = kPanelHeight;
  return {chart_group(series, options), kPanelHeight};
}

std::vector<Panel> panels(const StudyResult& result) {
  std::vector<Panel> all;
  for (const auto& [stem, curves] : metric_curves(result)) {
    const bool several = std::any_of(curves.begin(), curves.end(), [](const Series& s) { return s.points.size() > 1; });
    if (!several) continue;
    all.push_back(chart_panel(
        curves, {.title = stem + "@N over N", .x_label = "N (log scale)", .y_label = stem + "@N", .log_x = true}));
  }
  if (all.empty()) all.push_back(bars_panel(result));
  const std::vector<Series> losses = loss_curves(result);
  const bool trained = std::any_of(losses.begin(), losses.end(), [](const Series& s) { return !s.points.empty(); });
  if (trained) {
    all.push_back(chart_panel(losses, {.title = "training loss", .x_label = "step", .y_label = "loss, nats"}));
  }
  return all;
}

}  // namespace

std::string picture_svg(const Study& study, const StudyResult& result) {
  double width = 0, height = 0;
  std::string content = fmt::format("<text class='title' x='8' y='20'>{}</text>", html_escape(study.title));
  for (const Panel& panel : panels(result)) {
    content += fmt::format("<g transform='translate({} {})'>{}</g>", width, kTitleHeight, panel.content);
    width += kPanelWidth;
    height = std::max(height, kTitleHeight + panel.height);
  }
  return svg_file(width, height, study.title, content);
}

}  // namespace seqloom
