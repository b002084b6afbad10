#include <filesystem>
#include <memory>

#include "cli/commands.h"
#include "cli/progress.h"
#include "io/atomic_file.h"
#include "io/toml.h"
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
  fmt::print("{:<18} {:>11} {:>9} {:>9}", "variant", "parameters", "seconds", "tokens/s");
  if (!result.variants.empty()) {
    for (const auto& [name, value] : result.variants.front().metrics) fmt::print(" {:>12}", name);
  }
  fmt::print("\n");
  for (const auto& v : result.variants) {
    fmt::print("{:<18} {:>11} {:>9.1f} {:>9}", v.name, short_number(static_cast<double>(v.parameters)), v.seconds,
               short_number(v.tokens_per_second));
    for (const auto& [name, value] : v.metrics) fmt::print(" {:>12.4f}", value);
    fmt::print("\n");
  }
  for (const auto& check : result.checks) {
    fmt::print("{} {}: {:.4f}{}\n",
               !result.judged ? "not judged"
               : check.holds  ? "holds"
                              : "FAILS",
               check.check.text(), check.value, check.other ? fmt::format(" against {:.4f}", *check.other) : "");
  }
}

void study(const StudyArguments& arguments) {
  Config config = load_recipe(arguments.file, arguments.assignments);
  const Study parsed = parse_study(config, arguments.file);
  const std::string out = arguments.out.empty()
                              ? (std::filesystem::path("runs") / std::filesystem::path(arguments.file).stem()).string()
                              : arguments.out;
  std::filesystem::create_directories(out);
  std::unique_ptr<Progress> progress;
  StudyObserver observer;
  observer.on_step = [&](const std::string& variant, const StepReport& report) {
    if (!progress) progress = std::make_unique<Progress>(variant, report.steps);
    progress->update(report.step,
                     fmt::format("loss {:.4f}  {} tokens/s", report.loss, short_number(report.tokens_per_second)));
  };
  observer.on_variant = [&](const VariantResult& variant) {
    if (progress) progress->finish(fmt::format("{} tokens/s", short_number(variant.tokens_per_second)));
    progress.reset();
  };
  const StudyResult result = run_study(parsed, out, arguments.steps, observer);
  const auto file = [&](const char* name) { return (std::filesystem::path(out) / name).string(); };
  write_file_atomically(file("results.json"), result.to_json(parsed).dump(1) + "\n");
  write_file_atomically(file("report.html"), report_html(parsed, result));
  if (arguments.json) {
    fmt::print("{}\n", result.to_json(parsed).dump());
  } else {
    print_table(result);
    fmt::print("report: {}\n", file("report.html"));
  }
  if (result.judged && !result.holds()) throw ExitWith{1};
}

}  // namespace

void add_study_command(CLI::App& app) {
  auto arguments = std::make_shared<StudyArguments>();
  CLI::App* command = app.add_subcommand("study", "Train variants of a recipe, compare them and check a claim");
  command->footer(
      "Examples:\n  seqloom study studies/recall.toml\n  seqloom study studies/recall.toml --steps 20 --out "
      "/tmp/try\n\n"
      "Exit status 1 when the claim fails. With --steps the claim is not judged.");
  command->add_option("FILE", arguments->file, "a TOML study")->required();
  command->add_option("--out", arguments->out, "the study's folder (default: runs/NAME)");
  command->add_option("--set", arguments->assignments, "change a key of the study");
  command->add_option("--steps", arguments->steps, "train each variant for this many steps only")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40));
  command->add_flag("--json", arguments->json, "print the result as JSON");
  command->callback([arguments] { study(*arguments); });
}

}  // namespace seqloom
