#include <filesystem>
#include <memory>

#include "base/error.h"
#include "cli/commands.h"
#include "cli/progress.h"
#include "train/trainer.h"

namespace seqloom {
namespace {

struct TrainArguments {
  std::string recipe, out;
  std::vector<std::string> assignments;
  bool resume = false, overwrite = false, json = false;
};

std::string run_folder(const TrainArguments& arguments) {
  if (!arguments.out.empty()) return arguments.out;
  return (std::filesystem::path("runs") / std::filesystem::path(arguments.recipe).stem()).string();
}

std::string metrics_text(const std::map<std::string, double>& metrics) {
  std::string text;
  for (const auto& [name, value] : metrics) text += fmt::format("{}{} {:.4f}", text.empty() ? "" : ", ", name, value);
  return text;
}

void train(const TrainArguments& arguments) {
  const std::string out = run_folder(arguments);
  const Config recipe = load_recipe(arguments.recipe, arguments.assignments);
  if (!arguments.resume && !arguments.overwrite && std::filesystem::exists(checkpoint_file(out)) &&
      std::filesystem::is_directory(out)) {
    misuse("{} already holds a run; go on with --resume, start over with --overwrite, or choose another --out", out);
  }
  Trainer trainer(recipe, arguments.recipe, out, arguments.resume);
  int64_t parameters = 0;
  for (const auto& parameter : trainer.task().model().parameters()) parameters += parameter.numel();
  fmt::print(stderr, "{}: {} parameters, {} steps{}\n", arguments.recipe, short_number(static_cast<double>(parameters)),
             trainer.options().steps, trainer.step() > 0 ? fmt::format(", resuming at {}", trainer.step()) : "");

  Progress progress("training", trainer.options().steps, trainer.step());
  double rate = 0;  // smoothed tokens/s
  TrainObserver observer;
  observer.on_step = [&](const StepReport& report) {
    rate = rate == 0 ? report.tokens_per_second : 0.9 * rate + 0.1 * report.tokens_per_second;
    progress.update(report.step, fmt::format("loss {:.4f}  {} tokens/s", report.loss, short_number(rate)));
  };
  observer.on_evaluation = [&](int64_t step, const std::map<std::string, double>& metrics) {
    progress.finish(fmt::format("step {}: {}", step, metrics_text(metrics)));
  };
  const auto metrics = trainer.run(observer);
  fmt::print(stderr, "saved {}\n", checkpoint_file(out));
  if (arguments.json) {
    fmt::print("{}\n",
               Config({{"checkpoint", checkpoint_file(out)}, {"step", trainer.step()}, {"metrics", metrics}}).dump());
  }
}

}  // namespace

void add_train_command(CLI::App& app) {
  auto arguments = std::make_shared<TrainArguments>();
  CLI::App* command = app.add_subcommand("train", "Train the model that a recipe describes");
  command->footer(
      "Examples:\n"
      "  seqloom train recipes/scripture.toml\n"
      "  seqloom train recipes/scripture.toml --set task.data=my.txt --set train.steps=2000 --out runs/mine\n"
      "  seqloom train recipes/scripture.toml --resume");
  command->add_option("RECIPE", arguments->recipe, "a TOML recipe")->required();
  command->add_option("--set", arguments->assignments, "change a key: --set train.steps=100 (again for more)");
  command->add_option("--out", arguments->out, "the run's folder (default: runs/NAME)");
  command->add_flag("--resume", arguments->resume, "go on from the folder's checkpoint, if there is one");
  command->add_flag("--overwrite", arguments->overwrite, "replace a run that is already there");
  command->add_flag("--json", arguments->json, "print the result as JSON");
  command->callback([arguments] { train(*arguments); });
}

}  // namespace seqloom
