#include "train/claims.h"

#include <fmt/format.h>

namespace seqloom {
namespace {

/// Text for a cell of a Markdown table.
std::string cell(const std::string& text) {
  std::string safe;
  for (const char c : text) {
    if (c == '|' || c == '\\' || c == '<' || c == '`') safe += '\\';
    safe += c == '\n' ? ' ' : c;
  }
  return safe;
}

std::string verdict(const StudyResult& result, const CheckResult& check) {
  if (!result.judged) return "not judged";
  return check.holds ? "holds" : "**fails**";
}

std::string section(const RunStudy& run) {
  std::string text = fmt::format("## {}\n\n", cell(run.study.title));
  if (!run.study.paper.empty()) text += fmt::format("{}\n\n", cell(run.study.paper));
  if (!run.study.about.empty()) text += fmt::format("{}\n\n", cell(run.study.about));
  text += fmt::format("Run it: `seqloom study {}`\n\n| claim | measured | verdict |\n| --- | --- | --- |\n", run.file);
  for (const auto& check : run.result.checks) {
    const std::string other = check.other ? fmt::format(" against {:.4g}", *check.other) : "";
    text += fmt::format("| {} | {:.4g}{} | {} |\n", cell(check.check.text()), check.value, other,
                        verdict(run.result, check));
  }
  text += fmt::format("\n![{}]({}/{}.svg)\n", cell(run.study.title), kPictures, run.stem());
  text += "\n| variant | parameters | training, s |\n| --- | --- | --- |\n";
  for (const auto& variant : run.result.variants) {
    text += fmt::format("| {} | {} | {:.0f} |\n", variant.name, variant.parameters, variant.seconds);
  }
  return text + "\n";
}

}  // namespace

std::string claims_markdown(const std::vector<RunStudy>& runs) {
  size_t held = 0;
  for (const auto& run : runs) held += run.result.judged && run.result.holds() ? 1 : 0;
  std::string text = fmt::format(
      "# Claims\n\nWhat papers say, run again by the files under studies/: {} of {} studies hold. Written by `make "
      "studies`; times are of one machine and vary.\n\n",
      held, runs.size());
  for (const auto& run : runs) text += section(run);
  return text;
}

}  // namespace seqloom
