#include "train/report.h"

#include <algorithm>
#include <set>

#include "train/chart.h"

namespace seqloom {
namespace {

constexpr const char* kStyle = R"(
:root { color-scheme: light dark; --ink: #1d2126; --paper: #fff; --faint: #d9dde2; --good: #0b7a4b; --bad: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ea; --paper: #16191d; --faint: #3a4047; --good: #4cc38a; --bad: #ff8a80; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1180px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0.2rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.holds { color: var(--good); font-weight: 600; } .fails { color: var(--bad); font-weight: 600; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; }
th, td { padding: 0.3rem 0.8rem; border-bottom: 1px solid var(--faint); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 1.5rem; }
svg { width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: var(--ink); }
svg text.title { font-weight: 600; font-size: 13px; } svg .grid { stroke: var(--faint); stroke-width: 1; }
)";

std::string claim_html(const StudyResult& result) {
  if (result.checks.empty()) return "";
  std::string html = "<h2>Claim</h2>\n<ul>\n";
  for (const auto& check : result.checks) {
    const std::string other = check.other ? fmt::format(" against {:.4f}", *check.other) : "";
    html += fmt::format("<li>{}: {:.4f}{} <span class='{}'>{}</span></li>\n", html_escape(check.check.text()),
                        check.value, other,
                        !result.judged ? ""
                        : check.holds  ? "holds"
                                       : "fails",
                        !result.judged ? "(not judged: fewer steps than the study asks for)"
                        : check.holds  ? "holds"
                                       : "fails");
  }
  return html + "</ul>\n";
}

std::set<std::string> metric_names(const StudyResult& result) {
  std::set<std::string> names;
  for (const auto& variant : result.variants) {
    for (const auto& [name, value] : variant.metrics) names.insert(name);
  }
  return names;
}

std::string table_html(const StudyResult& result) {
  const auto metrics = metric_names(result);
  std::string html =
      "<h2>Variants</h2>\n<div "
      "class='scroll'><table>\n<tr><th>variant</th><th>parameters</th><th>seconds</th><th>tokens/s</th>";
  for (const auto& name : metrics) html += "<th>" + html_escape(name) + "</th>";
  html += "</tr>\n";
  for (const auto& v : result.variants) {
    html += fmt::format("<tr><td>{}</td><td>{}</td><td>{:.1f}</td><td>{:.0f}</td>", html_escape(v.name), v.parameters,
                        v.seconds, v.tokens_per_second);
    for (const auto& name : metrics) {
      const auto found = v.metrics.find(name);
      html += found == v.metrics.end() ? "<td></td>" : fmt::format("<td>{:.4f}</td>", found->second);
    }
    html += "</tr>\n";
  }
  return html + "</table></div>\n";
}

/// At most 200 means of neighbouring losses: single steps are noise.
std::vector<std::pair<double, double>> smoothed(const std::vector<std::pair<int64_t, double>>& losses) {
  const size_t width = std::max<size_t>(1, losses.size() / 200);
  std::vector<std::pair<double, double>> points;
  for (size_t i = 0; i + width <= losses.size(); i += width) {
    double sum = 0;
    for (size_t j = i; j < i + width; ++j) sum += losses[j].second;
    points.emplace_back(losses[i + width - 1].first, sum / static_cast<double>(width));
  }
  return points;
}

/// Metrics called NAME@NUMBER as curves over the number, by NAME.
std::map<std::string, std::vector<Series>> curves_over_length(const StudyResult& result) {
  std::map<std::string, std::vector<Series>> charts;
  for (const auto& variant : result.variants) {
    std::map<std::string, std::vector<std::pair<double, double>>> points;
    for (const auto& [name, value] : variant.metrics) {
      const size_t at = name.find('@');
      if (at == std::string::npos || name.find_first_not_of("0123456789", at + 1) != std::string::npos ||
          at + 1 == name.size())
        continue;
      points[name.substr(0, at)].emplace_back(std::stod(name.substr(at + 1)), value);
    }
    for (auto& [name, curve] : points) {
      std::sort(curve.begin(), curve.end());
      charts[name].push_back({variant.name, curve});
    }
  }
  return charts;
}

std::string charts_html(const StudyResult& result) {
  std::vector<Series> losses;
  for (const auto& v : result.variants) losses.push_back({v.name, smoothed(v.losses)});
  std::string html = "<h2>Curves</h2>\n<div class='charts'>\n" +
                     chart_svg(losses, {.title = "training loss", .x_label = "step", .y_label = "loss"}) + "\n";
  for (const auto& [metric, curves] : curves_over_length(result)) {
    html +=
        chart_svg(curves, {.title = metric + " by size", .x_label = "size", .y_label = metric, .log_x = true}) + "\n";
  }
  for (const auto& metric : metric_names(result)) {
    if (metric.find('@') != std::string::npos) continue;
    std::vector<Series> points;
    for (const auto& v : result.variants) {
      const auto found = v.metrics.find(metric);
      points.push_back({v.name, {}});
      if (found != v.metrics.end()) points.back().points.emplace_back(v.seconds, found->second);
    }
    html += chart_svg(
                points,
                {.title = metric + " against training time", .x_label = "seconds", .y_label = metric, .lines = false}) +
            "\n";
  }
  return html + "</div>\n";
}

}  // namespace

std::string report_html(const Study& study, const StudyResult& result) {
  std::string html =
      "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
      "<meta name='viewport' content='width=device-width, initial-scale=1'>\n";
  html += fmt::format("<title>{}</title>\n<style>{}</style>\n</head>\n<body>\n", html_escape(study.title), kStyle);
  html += fmt::format("<h1>{}</h1>\n<p>{}</p>\n<p>{}</p>\n", html_escape(study.title), html_escape(study.paper),
                      html_escape(study.about));
  html += claim_html(result) + table_html(result) + charts_html(result);
  return html + "</body>\n</html>\n";
}

}  // namespace seqloom
