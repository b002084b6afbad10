#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "train/checkpoint.h"
#include "train/task.h"
#include "train/train_step.h"

namespace seqloom {

/// One line of a run's history.
struct StepReport {
  int64_t step = 0, steps = 0;  // done, of
  double loss = 0, learning_rate = 0, gradient_norm = 0, seconds = 0, tokens_per_second = 0;
};

/// Who watches a run: the command line's progress bar, a study's table.
struct TrainObserver {
  std::function<void(const StepReport&)> on_step = [](const StepReport&) {};
  std::function<void(int64_t step, const std::map<std::string, double>& metrics)> on_evaluation =
      [](int64_t, const std::map<std::string, double>&) {};
};

/// Trains what a recipe describes, in the folder `out`: metrics.jsonl (a line a step and an evaluation) and
/// checkpoint.safetensors. With `resume` it goes on from that checkpoint to the very weights of an unbroken run.
class Trainer {
 public:
  /// Throws UsageError for a wrong recipe. `name` is the recipe's file, for messages.
  Trainer(Config recipe, std::string name, std::string out, bool resume);
  ~Trainer();

  /// Runs to the last step, evaluates, saves. Returns the final metrics.
  std::map<std::string, double> run(const TrainObserver& observer);

  Task& task() { return *task_; }
  const TrainOptions& options() const { return options_; }
  int64_t step() const { return step_; }

 private:
  StepReport train_step();
  double accumulate_gradients();
  double clip_gradients();
  void save() const;
  void restore();
  std::map<std::string, double> evaluate();

  class Metrics;  // the metrics.jsonl file

  TrainOptions options_;
  Checkpoint checkpoint_;
  std::unique_ptr<Task> task_;
  std::unique_ptr<torch::optim::AdamW> optimizer_;
  std::unique_ptr<Metrics> metrics_;
  int64_t step_ = 0;
};

}  // namespace seqloom
