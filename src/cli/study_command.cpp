#include <algorithm>
#include <filesystem>
#include <memory>

#include "base/error.h"
#include "cli/commands.h"
#include "cli/progress.h"
#include "io/atomic_file.h"
#include "train/claims.h"
#include "train/picture.h"
#include "train/report.h"
#include "train/study_series.h"

namespace seqloom {
namespace {

struct StudyArguments {
  std::vector<std::string> files;
  std::string out, page;
  std::vector<std::string> assignments;
  int64_t steps = 0;
  bool json = false;
};

void print_table(const StudyResult& result) {
  size_t wide = 7;
  for (const auto& v : result.variants) wide = std::max(wide, v.name.size());
  fmt::print("{:<{}} {:>10} {:>8} {:>8} {:>10}", "variant", wide, "parameters", "seconds", "tokens/s", "memory");
  const std::vector<std::string> metrics = sorted_metrics(result);
  for (const auto& name : metrics) fmt::print(" {:>{}}", name, std::max<size_t>(8, name.size()));
  fmt::print("\n");
  for (const auto& v : result.variants) {
    fmt::print("{:<{}} {:>10} {:>8.1f} {:>8} {:>10}", v.name, wide, short_number(static_cast<double>(v.parameters)),
               v.seconds, short_number(v.tokens_per_second), v.memory_bytes ? bytes_text(*v.memory_bytes) : "-");
    for (const auto& name : metrics) {
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
    if (!progress) return;  // a task that only measures
    progress->finish(fmt::format("{} tokens/s", short_number(variant.tokens_per_second)));
    progress.reset();
  };
  return observer;
}

RunStudy run(const std::string& file, const StudyArguments& arguments) {
  RunStudy done{parse_study(load_recipe(file, arguments.assignments), file), {}, file, arguments.out};
  if (done.out.empty()) done.out = (std::filesystem::path("runs") / done.stem()).string();
  std::unique_ptr<Progress> progress;
  done.result = run_study(done.study, done.out, arguments.steps, shown_by(progress));
  write_report(done.study, done.result, done.out);
  if (arguments.json) {
    fmt::print("{}\n", done.result.to_json(done.study).dump(-1, ' ', false, Config::error_handler_t::replace));
    return done;
  }
  print_table(done.result);
  print_claim(done.result);
  fmt::print("report: {}\n", (std::filesystem::path(done.out) / "report.html").string());
  return done;
}

/// The page of claims, and beside it in img/ a picture of every study.
void write_page(const std::string& page, const std::vector<RunStudy>& runs) {
  const std::filesystem::path folder = std::filesystem::path(page).parent_path() / kPictures;
  std::error_code failure;
  std::filesystem::create_directories(folder, failure);
  if (failure) misuse("{}: cannot be made a folder ({}); choose another --page", folder.string(), failure.message());
  for (const auto& one : runs) {
    write_file_atomically((folder / (one.stem() + ".svg")).string(), picture_svg(one.study, one.result));
  }
  write_file_atomically(page, claims_markdown(runs));
}

void study(const StudyArguments& arguments) {
  if (arguments.files.size() > 1 && !arguments.out.empty())
    misuse("--out is one study's folder; leave it out for several");
  std::vector<RunStudy> runs;
  for (const auto& file : arguments.files) runs.push_back(run(file, arguments));
  if (!arguments.page.empty()) write_page(arguments.page, runs);
  const bool failed = std::any_of(runs.begin(), runs.end(),
                                  [](const RunStudy& one) { return one.result.judged && !one.result.holds(); });
  if (failed) throw ExitWith{1};
}

}  // namespace

void add_study_command(CLI::App& app) {
  auto arguments = std::make_shared<StudyArguments>();
  CLI::App* command = app.add_subcommand("study", "Train variants of a recipe, compare them and check a claim");
  command->footer(
      "Writes results.json and report.html, and each variant's run in a folder of its name.\n\n"
      "Examples:\n  seqloom study studies/recall.toml\n"
      "  seqloom study studies/recall.toml --steps 20 --out /tmp/try\n"
      "  seqloom study studies/*.toml --page docs/claims.md\n\n"
      "Exit status 1 when the claim fails. With --steps the claim is not judged.");
  command->add_option("FILE", arguments->files, "a TOML study, or several")->required();
  command->add_option("--page", arguments->page,
                      "also write a Markdown page of all claims and verdicts, and pictures in img/ beside it");
  command->add_option("--out", arguments->out, "the study's folder (default: runs/NAME)");
  command->add_option("--set", arguments->assignments, "change a key of the study, as in train.steps=100");
  command->add_option("--steps", arguments->steps, "train each variant for this many steps only")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40));
  command->add_flag("--json", arguments->json, "print what results.json holds");
  command->callback([arguments] { study(*arguments); });
}

}  // namespace seqloom
