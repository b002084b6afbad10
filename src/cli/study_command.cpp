#include <algorithm>
#include <filesystem>
#include <memory>

#include "base/error.h"
#include "cli/commands.h"
#include "cli/progress.h"
#include "train/report.h"

namespace seqloom {
namespace {

struct StudyArguments {
  std::string file, out;
  std::vector<std::string> assignments;
  int64_t steps = 0;
  bool json = false;
};

void print_table(const StudyResult& result) {
  size_t wide = 7;
  for (const auto& v : result.variants) wide = std::max(wide, v.name.size());
  fmt::print("{:<{}} {:>10} {:>8} {:>8} {:>10}", "variant", wide, "parameters", "seconds", "tokens/s", "memory");
  const auto& metrics = result.variants.front().metrics;
  for (const auto& [name, value] : metrics) fmt::print(" {:>{}}", name, std::max<size_t>(8, name.size()));
  fmt::print("\n");
  for (const auto& v : result.variants) {
    fmt::print("{:<{}} {:>10} {:>8.1f} {:>8} {:>10}", v.name, wide, short_number(static_cast<double>(v.parameters)),
               v.seconds, short_number(v.tokens_per_second), v.memory_bytes ? bytes_text(*v.memory_bytes) : "-");
    for (const auto& [name, value] : metrics) {
      const auto found = v.metrics.find(name);
      const std::string text = found == v.metrics.end() ? "-" : fmt::format("{:.4f}", found->second);
      fmt::print(" {:>{}}", text, std::max<size_t>(8, name.size()));
    }
    fmt::print("\n");
  }
}

void print_claim(const StudyResult& result) {
  for (const auto& check : result.checks) {
    fmt::print("{:<6} {}: {:.4f}{}\n",
               !result.judged ? "-"
               : check.holds  ? "holds"
                              : "FAILS",
               check.check.text(), check.value, check.other ? fmt::format(" against {:.4f}", *check.other) : "");
  }
  if (result.checks.empty()) return;
  fmt::print("{}\n", !result.judged   ? "the claim is not judged: this run has fewer steps than the study asks for"
                     : result.holds() ? "the claim holds"
                                      : "the claim FAILS");
}

/// Shows each variant's training; `progress` lives as long as the observer.
StudyObserver shown_by(std::unique_ptr<Progress>& progress) {
  StudyObserver observer;
  observer.on_step = [&progress](const std::string& variant, const StepReport& report) {
    if (!progress) progress = std::make_unique<Progress>(variant, report.steps);
    progress->update(report.step,
                     fmt::format("loss {:.4f}  {} tokens/s", report.loss, short_number(report.tokens_per_second)));
  };
  observer.on_variant = [&progress](const VariantResult& variant) {
    progress->finish(fmt::format("{} tokens/s", short_number(variant.tokens_per_second)));
    progress.reset();
  };
  return observer;
}

void study(const StudyArguments& arguments) {
  const Study parsed = parse_study(load_recipe(arguments.file, arguments.assignments), arguments.file);
  const std::string out = arguments.out.empty()
                              ? (std::filesystem::path("runs") / std::filesystem::path(arguments.file).stem()).string()
                              : arguments.out;
  std::unique_ptr<Progress> progress;
  const StudyResult result = run_study(parsed, out, arguments.steps, shown_by(progress));
  write_report(parsed, result, out);
  if (arguments.json) {
    fmt::print("{}\n", result.to_json(parsed).dump(-1, ' ', false, Config::error_handler_t::replace));
  } else {
    print_table(result);
    print_claim(result);
    fmt::print("report: {}\n", (std::filesystem::path(out) / "report.html").string());
  }
  if (result.judged && !result.holds()) throw ExitWith{1};
}

}  // namespace

void add_study_command(CLI::App& app) {
  auto arguments = std::make_shared<StudyArguments>();
  CLI::App* command = app.add_subcommand("study", "Train variants of a recipe, compare them and check a claim");
  command->footer(
      "Writes results.json and report.html, and each variant's run in a folder of its name.\n\n"
      "Examples:\n  seqloom study studies/recall.toml\n"
      "  seqloom study studies/recall.toml --steps 20 --out /tmp/try\n\n"
      "Exit status 1 when the claim fails. With --steps the claim is not judged.");
  command->add_option("FILE", arguments->file, "a TOML study")->required();
  command->add_option("--out", arguments->out, "the study's folder (default: runs/NAME)");
  command->add_option("--set", arguments->assignments, "change a key of the study, as in train.steps=100");
  command->add_option("--steps", arguments->steps, "train each variant for this many steps only")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40));
  command->add_flag("--json", arguments->json, "print what results.json holds");
  command->callback([arguments] { study(*arguments); });
}

}  // namespace seqloom
