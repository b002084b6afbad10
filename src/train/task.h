#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/fields.h"
#include "base/registry.h"
#include "base/torch.h"

namespace seqloom {

/// What a recipe trains. The trainer knows tasks by this alone.
class Task {
 public:
  virtual ~Task() = default;

  virtual torch::nn::Module& model() = 0;
  /// The training loss of micro-batch number `index`, a scalar with a graph. Must be a function of the recipe and
  /// `index` alone, so that a resumed run sees the data of an unbroken one.
  virtual torch::Tensor loss(int64_t index) = 0;
  virtual int64_t tokens_per_batch() const = 0;
  /// False for a task that only measures: it is evaluated without a step before it.
  virtual bool trains() const { return true; }
  /// Metrics on held-out data by name. Called without gradients.
  virtual std::map<std::string, double> evaluate() = 0;
  /// The metric that tells best how good the model is, and whether less of it is better.
  virtual std::string main_metric() const = 0;
  virtual bool less_is_better() const { return true; }

  virtual std::vector<torch::Tensor> without_weight_decay() const { return {}; }
  /// A factor on the schedule's learning rate at a step: a task in stages.
  virtual double rate_factor(int64_t step) const { return 1; }
  virtual void set_checkpointing(bool on) = 0;
  /// What a checkpoint must carry besides the recipe to be used alone, e.g. a tokenizer's file.
  virtual std::map<std::string, std::string> attachments() const { return {}; }
};

struct TaskEntry {
  std::string about;
  /// From the whole recipe ([task], [model], [train].batch and .seed). `name` is the recipe's file, for messages.
  std::function<std::unique_ptr<Task>(const Config& recipe, const std::string& name)> make;
  bool brings_model = false;  // a recipe then has no [model]
};

Registry<TaskEntry>& tasks();

/// The task that recipe.task.kind names.
std::unique_ptr<Task> make_task(const Config& recipe, const std::string& name);

}  // namespace seqloom
