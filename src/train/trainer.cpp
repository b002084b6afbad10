#include "train/trainer.h"

#include <torch/nn/utils/clip_grad.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "base/random.h"
#include "io/atomic_file.h"
#include "mixers/mixer.h"
#include "train/schedule.h"

namespace seqloom {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

/// metrics.jsonl: one JSON object a line, flushed as it is written.
class Trainer::Metrics {
 public:
  /// Keeps the lines of `path` up to `step` (a killed run may have written beyond its checkpoint).
  Metrics(std::string path, int64_t step) : path_(std::move(path)) {
    std::string kept;
    if (step > 0) {
      std::ifstream before(path_);
      for (std::string line; std::getline(before, line);) {
        const Config entry = Config::parse(line, nullptr, false);
        if (entry.is_object() && entry.value("step", int64_t{0}) <= step) kept += line + "\n";
      }
    }
    write_file_atomically(path_, kept);
    file_.open(path_, std::ios::app);
    if (!file_) fail("{}: cannot be written", path_);
  }

  void write(const Config& entry) {
    file_ << entry.dump() << '\n' << std::flush;
    if (!file_) fail("{}: writing failed; is the disk full?", path_);
  }

 private:
  std::string path_;
  std::ofstream file_;
};

Trainer::Trainer(Config recipe, std::string name, std::string out, bool resume) {
  options_ = read_options<TrainOptions>(recipe.value("train", Config::object()), name + ": train");
  checkpoint_.path = (std::filesystem::path(out) / "checkpoint.safetensors").string();
  torch::manual_seed(mixed(options_.seed, 0));
  task_ = make_task(recipe, name);
  task_->set_checkpointing(options_.checkpoint_activations);
  task_->model().train();
  checkpoint_.recipe = std::move(recipe);
  checkpoint_.attachments = task_->attachments();
  optimizer_ = make_optimizer(task_->model().parameters(), task_->without_weight_decay(), options_);
  std::error_code failure;
  std::filesystem::create_directories(out, failure);
  if (failure) misuse("{}: cannot be made a folder ({}); choose another --out", out, failure.message());
  if (resume && std::filesystem::exists(checkpoint_.path)) restore();
  metrics_ = std::make_unique<Metrics>((std::filesystem::path(out) / "metrics.jsonl").string(), step_);
}

Trainer::~Trainer() = default;

std::map<std::string, double> Trainer::run(const TrainObserver& observer) {
  std::map<std::string, double> metrics;
  while (task_->trains() && step_ < options_.steps) {
    const StepReport report = train_step();
    metrics_->write({{"step", report.step},
                     {"loss", report.loss},
                     {"learning_rate", report.learning_rate},
                     {"gradient_norm", report.gradient_norm},
                     {"tokens_per_second", report.tokens_per_second}});
    observer.on_step(report);
    const bool last = step_ == options_.steps;
    if (options_.eval_every > 0 && step_ % options_.eval_every == 0 && !last) {
      metrics = evaluate();
      observer.on_evaluation(step_, metrics);
    }
    if (options_.save_every > 0 && step_ % options_.save_every == 0 && !last) save();
  }
  metrics = evaluate();
  observer.on_evaluation(step_, metrics);
  save();
  return metrics;
}

StepReport Trainer::train_step() {
  const double start = now();
  // Whatever a step draws is a function of the seed and the step, so that a resumed run draws the same.
  torch::manual_seed(mixed(options_.seed, 1 + step_));
  StepReport report;
  report.learning_rate =
      options_.learning_rate * task_->rate_factor(step_) *
      schedule_factor(options_.schedule, step_, options_.steps, options_.warmup, options_.final_factor);
  for (auto& group : optimizer_->param_groups()) {
    static_cast<torch::optim::AdamWOptions&>(group.options()).lr(report.learning_rate);
  }
  optimizer_->zero_grad();
  report.loss = accumulate_gradients();
  report.gradient_norm = clip_gradients();
  update_parameters(*optimizer_);
  for (const auto& module : task_->model().modules()) {
    if (auto* mixer = dynamic_cast<Mixer*>(module.get())) mixer->after_step();
  }
  ++step_;
  report.step = step_;
  report.steps = options_.steps;
  report.seconds = now() - start;
  report.tokens_per_second = static_cast<double>(task_->tokens_per_batch() * options_.accumulate) / report.seconds;
  return report;
}

double Trainer::accumulate_gradients() {
  double total = 0;
  for (int64_t part = 0; part < options_.accumulate; ++part) {
    torch::Tensor loss;
    {
      const Autocast autocast(options_.precision == "bfloat16");
      loss = task_->loss(step_ * options_.accumulate + part) / static_cast<double>(options_.accumulate);
    }
    const double value = loss.item<double>();
    if (!std::isfinite(value)) {
      fail("the loss is {} at step {}; lower train.learning_rate or set train.clip. The last checkpoint is kept: {}",
           value, step_ + 1, std::filesystem::exists(checkpoint_.path) ? checkpoint_.path : "none was written yet");
    }
    loss.backward();
    total += value;
  }
  return total;
}

double Trainer::clip_gradients() {
  const auto parameters = task_->model().parameters();
  const double limit = options_.clip > 0 ? options_.clip : std::numeric_limits<double>::infinity();
  return torch::nn::utils::clip_grad_norm_(parameters, limit);
}

std::map<std::string, double> Trainer::evaluate() {
  const torch::NoGradGuard no_grad;
  task_->model().eval();
  auto metrics = task_->evaluate();
  task_->model().train();
  Config entry = {{"step", step_}};
  for (const auto& [key, value] : metrics) entry["eval." + key] = value;
  metrics_->write(entry);
  return metrics;
}

void Trainer::save() const {
  TensorMap state;
  for (const auto& parameter : task_->model().named_parameters()) {
    const auto found = optimizer_->state().find(parameter.value().unsafeGetTensorImpl());
    if (found == optimizer_->state().end()) continue;  // never had a gradient
    const auto& adam = static_cast<const torch::optim::AdamWParamState&>(*found->second);
    state[parameter.key() + ".exp_avg"] = adam.exp_avg();
    state[parameter.key() + ".exp_avg_sq"] = adam.exp_avg_sq();
    state[parameter.key() + ".step"] = torch::tensor(adam.step(), torch::kInt64);
  }
  Checkpoint checkpoint = checkpoint_;
  checkpoint.step = step_;
  save_checkpoint(checkpoint, task_->model(), state);
}

void Trainer::restore() {
  const Checkpoint saved = open_checkpoint(checkpoint_.path);
  if (saved.recipe != checkpoint_.recipe) {
    misuse("{}: was trained by another recipe; resume with that one, or choose another --out", checkpoint_.path);
  }
  if (saved.weights != WeightFormat()) {
    misuse("{}: its weights are {}, made for use and not for training; go on from the run that they were made from",
           checkpoint_.path, saved.weights.type);
  }
  load_model(saved, task_->model());
  const Safetensors file(saved.path);
  for (const auto& parameter : task_->model().named_parameters()) {
    const std::string prefix = "optimizer." + parameter.key();
    if (!file.contains(prefix + ".exp_avg")) continue;
    auto adam = std::make_unique<torch::optim::AdamWParamState>();
    adam->exp_avg(file.load(prefix + ".exp_avg"));
    adam->exp_avg_sq(file.load(prefix + ".exp_avg_sq"));
    adam->step(file.load(prefix + ".step").item<int64_t>());
    if (adam->exp_avg().sizes() != parameter.value().sizes() ||
        adam->exp_avg_sq().sizes() != parameter.value().sizes()) {
      fail("{}: the optimiser's state of '{}' has another shape than the parameter", saved.path, parameter.key());
    }
    optimizer_->state()[parameter.value().unsafeGetTensorImpl()] = std::move(adam);
  }
  step_ = saved.step;
}

}  // namespace seqloom
