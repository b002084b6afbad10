#pragma once
#include <torch/optim/adamw.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "train/checkpoint.h"
#include "train/task.h"

namespace seqloom {

struct TrainOptions {
  int64_t steps = 1000, batch = 16, accumulate = 1, warmup = 0;
  double learning_rate = 1e-3, final_factor = 0.1, weight_decay = 0.01, beta1 = 0.9, beta2 = 0.95, eps = 1e-8,
         clip = 1.0;
  std::string schedule = "cosine", precision = "float32";
  bool checkpoint_activations = false;
  int64_t eval_every = 0, save_every = 0, seed = 0;

  void describe(Fields& f) {
    f.add("steps", steps, "optimiser steps").at_least(1);
    f.add("batch", batch, "rows of a micro-batch").at_least(1).at_most(1 << 20);
    f.add("accumulate", accumulate, "micro-batches of one step").at_least(1);
    f.add("learning_rate", learning_rate, "AdamW's peak rate").greater_than(0);
    f.add("schedule", schedule, "of the learning rate after warm-up").one_of({"cosine", "linear", "constant"});
    f.add("warmup", warmup, "steps of linear warm-up").at_least(0);
    f.add("final_factor", final_factor, "the schedule ends at this part of the peak").at_least(0).at_most(1);
    f.add("weight_decay", weight_decay, "decoupled; not for vectors and what mixers exempt").at_least(0);
    f.add("beta1", beta1, "AdamW").at_least(0).less_than(1);
    f.add("beta2", beta2, "AdamW").at_least(0).less_than(1);
    f.add("eps", eps, "AdamW").greater_than(0);
    f.add("clip", clip, "largest gradient norm, 0: no clipping").at_least(0);
    f.add("precision", precision, "bfloat16: matrix products in bfloat16, weights in float32")
        .one_of({"float32", "bfloat16"});
    f.add("checkpoint_activations", checkpoint_activations, "recompute blocks in the backward pass to save memory");
    f.add("eval_every", eval_every, "steps between evaluations, 0: at the end only").at_least(0);
    f.add("save_every", save_every, "steps between checkpoints, 0: at the end only").at_least(0);
    f.add("seed", seed, "of weights and data order").at_least(0);
  }
};

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
