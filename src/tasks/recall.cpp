#include "tasks/recall.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "base/random.h"
#include "models/decoder.h"
#include "train/distill.h"
#include "train/example.h"
#include "train/token_loss.h"
#include "train/trainer.h"

namespace seqloom {
namespace {

constexpr uint64_t kEvaluationSeed = 0x6576616c;  // evaluation rows are the same for every recipe and seed
constexpr uint64_t kLengthSeed = 0x70616972;      // lengths of mixed rows are drawn apart from their tokens

/// The first `count` of 0 .. n-1 in random order.
std::vector<int64_t> draw(int64_t n, int64_t count, Random& random) {
  std::vector<int64_t> all(static_cast<size_t>(n));
  std::iota(all.begin(), all.end(), 0);
  for (int64_t i = 0; i < count; ++i) std::swap(all[i], all[i + random.below(n - i)]);
  all.resize(static_cast<size_t>(count));
  return all;
}

void check(const RecallOptions& options, const std::string& where) {
  if (options.eval_pairs.empty()) misuse("{}.eval_pairs is empty; name at least one number of pairs", where);
  if (options.packed && options.mixed) {
    misuse("{}.packed = true draws a number of pairs for each row already: leave out mixed", where);
  }
  if (options.pairs > options.keys) {
    misuse("{}.pairs = {}: there are only {} keys and a row's keys are distinct", where, options.pairs, options.keys);
  }
  for (const double n : options.eval_pairs) {
    if (n != std::floor(n)) misuse("{}.eval_pairs: {:g} is not a whole number", where, n);
    if (n > static_cast<double>(options.keys)) {
      misuse("{}.eval_pairs: {:g}: there are only {} keys and a row's keys are distinct", where, n, options.keys);
    }
  }
}

class RecallTask final : public Task, public HasExample {
 public:
  RecallTask(const Config& recipe, const std::string& name)
      : options_(read_options<RecallOptions>(recipe["task"], name + ": task", {"kind"})),
        train_(read_options<TrainOptions>(recipe.value("train", Config::object()), name + ": train")) {
    check(options_, name + ": task");
    decoder_ = std::make_shared<Decoder>(options_.keys + options_.values, recipe["model"], name + ": model");
    distillation_ = make_distillation(recipe, name, decoder_);
    if (distillation_ && options_.packed) misuse("{}: task.packed = true cannot be combined with [distill]", name);
  }

  torch::nn::Module& model() override { return *decoder_; }
  int64_t tokens_per_batch() const override {
    return train_.batch * 3 * (options_.mixed || options_.packed ? (options_.pairs + 1) / 2 : options_.pairs);
  }
  std::string main_metric() const override { return "accuracy"; }
  bool less_is_better() const override { return false; }
  void set_checkpointing(bool on) override { decoder_->set_checkpointing(on); }
  std::vector<torch::Tensor> without_weight_decay() const override { return decoder_->without_weight_decay(); }

  torch::Tensor loss(int64_t index) override {
    Random random(mixed(train_.seed ^ kLengthSeed, index));
    if (options_.packed) return packed_loss(index, random);
    const int64_t pairs = options_.mixed ? 1 + random.below(options_.pairs) : options_.pairs;
    const RecallRows rows = recall_rows(train_.batch, pairs, options_, train_.seed, index * train_.batch);
    if (distillation_) return distillation_->loss(index / train_.accumulate, rows.ids, rows.targets);
    return token_loss(*decoder_, rows.ids, rows.targets);
  }

  double rate_factor(int64_t step) const override { return distillation_ ? distillation_->rate_factor(step) : 1; }

  std::map<std::string, double> evaluate() override {
    if (distillation_) distillation_->apply_updates();
    std::map<std::string, double> metrics = {{"accuracy", 0}, {"loss", 0}};
    const auto sizes = static_cast<double>(options_.eval_pairs.size());
    for (const double n : options_.eval_pairs) {
      const auto [accuracy, loss] = score(static_cast<int64_t>(n));
      metrics["accuracy@" + std::to_string(static_cast<int64_t>(n))] = accuracy;
      metrics["accuracy"] += accuracy / sizes;
      metrics["loss"] += loss / sizes;
    }
    return metrics;
  }

  torch::Tensor example() const override {
    const double most = *std::max_element(options_.eval_pairs.begin(), options_.eval_pairs.end());
    return recall_rows(1, static_cast<int64_t>(most), options_, kEvaluationSeed, 0).ids;
  }

 private:
  torch::Tensor packed_loss(int64_t index, Random& random) {
    std::vector<int64_t> pairs(static_cast<size_t>(train_.batch));
    for (int64_t& n : pairs) n = 1 + random.below(options_.pairs);
    const auto [rows, offsets] = packed_recall_rows(pairs, options_, train_.seed, index * train_.batch);
    return token_loss(*decoder_, rows.ids, rows.targets, Layout::packed(offsets));
  }

  /// Accuracy and mean loss over eval_rows rows of `pairs` pairs, a batch at a time.
  std::pair<double, double> score(int64_t pairs) {
    double right = 0, loss = 0;
    for (int64_t done = 0; done < options_.eval_rows; done += train_.batch) {
      const int64_t count = std::min(train_.batch, options_.eval_rows - done);
      const RecallRows rows = recall_rows(count, pairs, options_, mixed(kEvaluationSeed, pairs), done);
      Pass pass;
      const torch::Tensor logits = predict(rows, pass);
      right += logits.argmax(-1).eq(rows.targets).sum().item<double>();  // no id is kIgnored
      loss += token_loss(logits, rows.targets, Pass()).item<double>() * static_cast<double>(count);
    }
    const auto rows = static_cast<double>(options_.eval_rows);
    return {right / (rows * static_cast<double>(pairs)), loss / rows};
  }

  torch::Tensor predict(const RecallRows& rows, Pass& pass) {
    return decoder_->logits(decoder_->hidden(rows.ids, pass));
  }

  RecallOptions options_;
  TrainOptions train_;
  std::shared_ptr<Decoder> decoder_;
  std::unique_ptr<Distillation> distillation_;  // where the recipe has [distill]
};

const bool registered = tasks().add(
    "recall",
    {"multi-query associative recall; metrics: accuracy@N for N pairs, their mean accuracy, loss",
     [](const Config& recipe, const std::string& name) { return std::make_unique<RecallTask>(recipe, name); }});

}  // namespace

RecallRows recall_rows(int64_t rows, int64_t pairs, const RecallOptions& options, uint64_t seed, int64_t first) {
  RecallRows result;
  result.ids = torch::empty({rows, 3 * pairs}, torch::kInt64);
  result.targets = torch::full({rows, 3 * pairs}, kIgnored, torch::kInt64);
  for (int64_t b = 0; b < rows; ++b) {
    Random random(mixed(seed, static_cast<uint64_t>(first + b)));
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

PackedRecallRows packed_recall_rows(const std::vector<int64_t>& pairs, const RecallOptions& options, uint64_t seed,
                                    int64_t first) {
  std::vector<torch::Tensor> ids, targets;
  std::vector<int64_t> offsets = {0};
  for (size_t i = 0; i < pairs.size(); ++i) {
    const RecallRows row = recall_rows(1, pairs[i], options, seed, first + static_cast<int64_t>(i));
    ids.push_back(row.ids);
    targets.push_back(row.targets);
    offsets.push_back(offsets.back() + row.ids.size(1));
  }
  return {{torch::cat(ids, 1), torch::cat(targets, 1)}, torch::tensor(offsets)};
}

}  // namespace seqloom
