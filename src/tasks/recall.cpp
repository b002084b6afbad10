#include "tasks/recall.h"

#include <cmath>
#include <numeric>

#include "base/error.h"
#include "base/random.h"
#include "models/decoder.h"
#include "train/trainer.h"

namespace seqloom {
namespace {

constexpr uint64_t kEvaluationSeed = 0x6576616c;  // evaluation rows are the same for every recipe and seed
constexpr int64_t kIgnored = -100;

/// The first `count` of 0 .. n-1 in random order.
std::vector<int64_t> draw(int64_t n, int64_t count, Random& random) {
  std::vector<int64_t> all(static_cast<size_t>(n));
  std::iota(all.begin(), all.end(), 0);
  for (int64_t i = 0; i < count; ++i) std::swap(all[i], all[i + random.below(n - i)]);
  all.resize(static_cast<size_t>(count));
  return all;
}

class RecallTask final : public Task {
 public:
  RecallTask(const Config& recipe, const std::string& name)
      : options_(read_options<RecallOptions>(recipe["task"], name + ": task", {"kind"})),
        train_(read_options<TrainOptions>(recipe.value("train", Config::object()), name + ": train")) {
    int64_t most = options_.pairs;
    for (const double n : options_.eval_pairs) {
      if (n != std::floor(n)) misuse("{}: task.eval_pairs: {:g} is not a whole number", name, n);
      most = std::max(most, static_cast<int64_t>(n));
    }
    if (options_.eval_pairs.empty()) misuse("{}: task.eval_pairs is empty; name at least one number of pairs", name);
    if (most > options_.keys) misuse("{}: task.keys = {} are fewer than {} pairs", name, options_.keys, most);
    decoder_ = std::make_shared<Decoder>(options_.keys + options_.values, recipe["model"], name + ": model");
  }

  torch::nn::Module& model() override { return *decoder_; }
  int64_t tokens_per_batch() const override { return train_.batch * 3 * options_.pairs; }
  std::string main_metric() const override { return "accuracy"; }
  bool less_is_better() const override { return false; }
  void set_checkpointing(bool on) override { decoder_->set_checkpointing(on); }
  std::vector<torch::Tensor> without_weight_decay() const override { return decoder_->without_weight_decay(); }

  torch::Tensor loss(int64_t index) override {
    Random random(mixed(train_.seed ^ 0x70616972ULL, index));
    const int64_t pairs = options_.mixed ? 1 + random.below(options_.pairs) : options_.pairs;
    const RecallRows rows = recall_rows(train_.batch, pairs, options_, train_.seed, index);
    Pass pass;
    torch::Tensor loss = cross_entropy(predict(rows, pass), rows);
    for (const auto& extra : pass.losses) loss = loss + extra;
    return loss;
  }

  std::map<std::string, double> evaluate() override {
    std::map<std::string, double> metrics;
    double sum = 0;
    for (const double n : options_.eval_pairs) {
      const auto pairs = static_cast<int64_t>(n);
      const RecallRows rows = recall_rows(options_.eval_rows, pairs, options_, kEvaluationSeed, pairs);
      Pass pass;
      const torch::Tensor asked = rows.targets.ne(kIgnored);
      const torch::Tensor right = predict(rows, pass).argmax(-1).eq(rows.targets).logical_and(asked);
      const double accuracy = right.sum().item<double>() / asked.sum().item<double>();
      metrics["accuracy@" + std::to_string(pairs)] = accuracy;
      sum += accuracy;
    }
    metrics["accuracy"] = sum / static_cast<double>(options_.eval_pairs.size());
    return metrics;
  }

 private:
  torch::Tensor predict(const RecallRows& rows, Pass& pass) {
    return decoder_->logits(decoder_->hidden(rows.ids, pass));
  }
  static torch::Tensor cross_entropy(const torch::Tensor& logits, const RecallRows& rows) {
    return torch::nn::functional::cross_entropy(
        logits.flatten(0, 1), rows.targets.flatten(),
        torch::nn::functional::CrossEntropyFuncOptions().ignore_index(kIgnored));
  }

  RecallOptions options_;
  TrainOptions train_;
  std::shared_ptr<Decoder> decoder_;
};

const bool registered = tasks().add("recall", {"multi-query associative recall; metrics: accuracy@N for N pairs",
                                               [](const Config& recipe, const std::string& name) {
                                                 return std::make_unique<RecallTask>(recipe, name);
                                               }});

}  // namespace

RecallRows recall_rows(int64_t rows, int64_t pairs, const RecallOptions& options, uint64_t seed, int64_t index) {
  RecallRows result;
  result.ids = torch::empty({rows, 3 * pairs}, torch::kInt64);
  result.targets = torch::full({rows, 3 * pairs}, kIgnored, torch::kInt64);
  Random random(mixed(seed, index));
  for (int64_t b = 0; b < rows; ++b) {
    int64_t* id = result.ids.data_ptr<int64_t>() + b * 3 * pairs;
    int64_t* target = result.targets.data_ptr<int64_t>() + b * 3 * pairs;
    const auto keys = draw(options.keys, pairs, random);
    for (int64_t i = 0; i < pairs; ++i) {
      id[2 * i] = keys[i];
      id[2 * i + 1] = options.keys + random.below(options.values);
    }
    const auto order = draw(pairs, pairs, random);
    for (int64_t i = 0; i < pairs; ++i) {
      id[2 * pairs + i] = keys[order[i]];
      target[2 * pairs + i] = id[2 * order[i] + 1];
    }
  }
  return result;
}

}  // namespace seqloom
