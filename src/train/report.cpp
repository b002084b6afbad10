#include "train/report.h"

#include <algorithm>
#include <filesystem>
#include <set>

#include "io/atomic_file.h"
#include "train/chart.h"
#include "train/matrix_picture.h"
#include "train/study_series.h"

namespace seqloom {
namespace {

// default-src 'none': even a browser that is fooled by the page's data loads and runs nothing.
constexpr const char* kHead = R"(<!doctype html>
<html lang='en'>
<head>
<meta charset='utf-8'>
<meta name='viewport' content='width=device-width, initial-scale=1'>
<meta http-equiv='Content-Security-Policy' content="default-src 'none'; style-src 'unsafe-inline'">
)";

constexpr const char* kStyle = R"(
:root { color-scheme: light dark; --good: #0b7a4b; --bad: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --good: #4cc38a; --bad: #ff8a80; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1280px; margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin-bottom: 0.2rem; } h2 { font-size: 1.1rem; margin: 2rem 0 0.5rem; }
p { max-width: 48rem; } .paper, .note { opacity: 0.8; }
.verdict { font-weight: 600; } .holds { color: var(--good); } .fails { color: var(--bad); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.6rem; border-bottom: 1px solid var(--faint); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 1.5rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { font-size: 0.87rem; }
pre { overflow-x: auto; font-size: 0.8rem; }
)";

std::string verdict_html(const StudyResult& result, bool holds) {
  if (!result.judged) return "<span class='verdict'>not judged</span>";
  return fmt::format("<span class='verdict {0}'>{0}</span>", holds ? "holds" : "fails");
}

std::string claim_html(const StudyResult& result) {
  if (result.checks.empty()) return "";
  std::string html = fmt::format("<h2>Claim: {}</h2>\n", verdict_html(result, result.holds()));
  if (!result.judged) html += "<p class='note'>This run trained for fewer steps than the study asks for.</p>\n";
  html += "<ul class='claim'>\n";
  for (const auto& check : result.checks) {
    html +=
        fmt::format("<li>{}: {:.4f}{} {}</li>\n", html_escape(check.check.text()), check.value,
                    check.other ? fmt::format(" against {:.4f}", *check.other) : "", verdict_html(result, check.holds));
  }
  return html + "</ul>\n";
}

std::string memory_note(const StudyResult& result) {
  for (const auto& variant : result.variants) {
    if (variant.memory_tokens) {
      return fmt::format("<p class='note'>Memory: what one stream keeps after {} tokens.</p>\n",
                         *variant.memory_tokens);
    }
  }
  return "";
}

std::string table_html(const StudyResult& result) {
  const auto metrics = sorted_metrics(result);
  std::string html =
      "<h2>Variants</h2>\n<div class='scroll'><table id='variants'>\n<tr><th>variant</th><th>parameters</th>"
      "<th>seconds</th><th>tokens/s</th><th>memory</th>";
  for (const auto& name : metrics) html += "<th>" + html_escape(name) + "</th>";
  html += "</tr>\n";
  for (const auto& v : result.variants) {
    html +=
        fmt::format("<tr><td>{}</td><td>{}</td><td>{:.1f}</td><td>{:.0f}</td><td>{}</td>", html_escape(v.name),
                    v.parameters, v.seconds, v.tokens_per_second, v.memory_bytes ? bytes_text(*v.memory_bytes) : "-");
    for (const auto& name : metrics) {
      const auto found = v.metrics.find(name);
      html += found == v.metrics.end() ? "<td>-</td>" : fmt::format("<td>{:.4f}</td>", found->second);
    }
    html += "</tr>\n";
  }
  return html + "</table></div>\n" + memory_note(result);
}

std::string curves_over_size(const StudyResult& result) {
  std::string html;
  for (const auto& [stem, curves] : metric_curves(result)) {
    html += chart_svg(curves,
                      {.title = stem + "@N over N", .x_label = "N (log scale)", .y_label = stem + "@N", .log_x = true});
  }
  return html;
}

bool empty(const std::vector<Series>& all) {
  return std::all_of(all.begin(), all.end(), [](const Series& one) { return one.points.empty(); });
}

/// Each metric that is no NAME@N against what it cost.
std::string quality_against_cost(const StudyResult& result) {
  std::string html;
  for (const auto& metric : metric_names(result)) {
    if (size_of_metric(metric)) continue;
    const auto against = [&](auto cost) {
      return series_of(result, [&](const VariantResult& variant, auto& points) {
        const auto found = variant.metrics.find(metric);
        const std::optional<double> x = cost(variant);
        if (found != variant.metrics.end() && x) points.emplace_back(*x, found->second);
      });
    };
    const auto by_time = against(
        [](const VariantResult& v) { return v.losses.empty() ? std::nullopt : std::optional<double>(v.seconds); });
    if (!empty(by_time)) {
      html += chart_svg(by_time, {.title = metric + " against training time",
                                  .x_label = "training time, seconds",
                                  .y_label = metric,
                                  .lines = false});
    }
    const auto by_memory = against([](const VariantResult& v) {
      return v.memory_bytes ? std::optional<double>(static_cast<double>(*v.memory_bytes) / 1024) : std::nullopt;
    });
    if (empty(by_memory)) continue;
    html += chart_svg(by_memory, {.title = metric + " against memory",
                                  .x_label = "memory of a stream, KiB (log scale)",
                                  .y_label = metric,
                                  .lines = false,
                                  .log_x = true});
  }
  return html;
}

std::string charts_html(const StudyResult& result) {
  std::vector<std::string> names;
  for (const auto& variant : result.variants) names.push_back(variant.name);
  const std::vector<Series> losses = loss_curves(result);
  const std::string training =
      empty(losses) ? "" : chart_svg(losses, {.title = "training loss", .x_label = "step", .y_label = "loss, nats"});
  return "<h2>Curves</h2>\n" + legend_html(names) + "<div class='charts'>\n" + training + curves_over_size(result) +
         quality_against_cost(result) + "</div>\n";
}

std::string pictures_html(const StudyResult& result) {
  std::string html;
  for (const auto& variant : result.variants) {
    for (const auto& picture : variant.pictures) {
      const std::string layer = fmt::format("layer {}", picture.layer + 1);
      html += fmt::format("<figure>{}<figcaption>{}<br>{}</figcaption></figure>\n",
                          matrix_svg(picture.matrix, variant.name + ", " + layer), html_escape(variant.name), layer);
    }
  }
  if (html.empty()) return "";
  return "<h2>Mixing matrices</h2>\n<p class='note'>What each token (row, from the top) takes from each earlier one "
         "(column): head 0 of the first and the last layer, on one held-out row. The strength of a cell is relative to "
         "the largest of its row; blue adds, orange subtracts.</p>\n<div class='pictures'>\n" +
         html + "</div>\n";
}

std::string recipes_html(const Study& study) {
  std::string html = "<h2>Recipes</h2>\n";
  for (const auto& variant : study.variants) {
    html += fmt::format("<details><summary>{}</summary><pre>{}</pre></details>\n", html_escape(variant.name),
                        html_escape(variant.recipe.dump(2, ' ', false, Config::error_handler_t::replace)));
  }
  return html;
}

}  // namespace

std::string bytes_text(int64_t bytes) {
  if (bytes < 1024) return fmt::format("{} B", bytes);
  const double kib = static_cast<double>(bytes) / 1024;
  return kib < 1024 ? fmt::format("{:.1f} KiB", kib) : fmt::format("{:.1f} MiB", kib / 1024);
}

std::string report_html(const Study& study, const StudyResult& result) {
  std::string html = kHead;
  html += fmt::format("<title>{}</title>\n<style>{}{}</style>\n</head>\n<body>\n", html_escape(study.title), kStyle,
                      chart_style());
  html += fmt::format("<h1>{}</h1>\n", html_escape(study.title));
  if (!study.paper.empty()) html += fmt::format("<p class='paper'>{}</p>\n", html_escape(study.paper));
  if (!study.about.empty()) html += fmt::format("<p>{}</p>\n", html_escape(study.about));
  html += claim_html(result) + table_html(result) + charts_html(result) + pictures_html(result) + recipes_html(study);
  return html + "</body>\n</html>\n";
}

void write_report(const Study& study, const StudyResult& result, const std::string& out) {
  const std::filesystem::path folder = out;
  const std::string json = result.to_json(study).dump(1, ' ', false, Config::error_handler_t::replace);
  write_file_atomically((folder / "results.json").string(), json + "\n");
  write_file_atomically((folder / "report.html").string(), report_html(study, result));
}

}  // namespace seqloom
