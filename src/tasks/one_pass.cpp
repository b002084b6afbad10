#include "tasks/one_pass.h"

#include <random>

#include "base/random.h"
#include "ops/deep_memory.h"
#include "ops/polynomial_features.h"
#include "train/trainer.h"

namespace seqloom {
namespace {

using torch::Tensor;

constexpr uint64_t kEvaluationSeed = 0x6576616c;  // evaluation rows are the same for every recipe and seed
constexpr double kFirstRate = 0.1;

/// Nothing but the rate of the memory's own learning, which training finds.
class Rate : public torch::nn::Module {
 public:
  Rate() { log_rate_ = register_parameter("log_rate", torch::full({1}, std::log(kFirstRate))); }
  Tensor value() const { return log_rate_.exp(); }

 private:
  Tensor log_rate_;
};

/// A linear memory reads each row once, by a step of gradient descent for every pair; the loss is how badly it then
/// recalls the last pairs.
class OnePassTask final : public Task {
 public:
  OnePassTask(const Config& recipe, const std::string& name)
      : options_(read_options<OnePassOptions>(recipe["task"], name + ": task", {"kind"})),
        train_(read_options<TrainOptions>(recipe.value("train", Config::object()), name + ": train")) {
    if (recipe.contains("distill")) misuse("{}: distill: the task one_pass has no teacher", name);
    if (options_.judged > options_.pairs) {
      misuse("{}: task.judged = {} is more than the {} pairs of a row", name, options_.judged, options_.pairs);
    }
  }

  torch::nn::Module& model() override { return *rate_; }
  int64_t tokens_per_batch() const override { return train_.batch * options_.pairs; }
  std::string main_metric() const override { return "error"; }
  void set_checkpointing(bool on) override {
    if (on) misuse("the task one_pass has no layers to checkpoint; leave out train.checkpoint_activations");
  }
  std::vector<Tensor> without_weight_decay() const override { return rate_->parameters(); }

  Tensor loss(int64_t index) override {
    return error(pair_rows(train_.batch, options_, train_.seed, index * train_.batch));
  }

  std::map<std::string, double> evaluate() override {
    const PairRows rows = pair_rows(options_.eval_rows, options_, kEvaluationSeed, 0);
    return {{"error", error(rows).item<double>()},
            {"residual", least_residual(features(rows.keys), rows.values)},
            {"rate", rate_->value().item<double>()}};
  }

 private:
  Tensor features(const Tensor& keys) const {
    if (options_.degree == 1) return keys;
    Tensor coefficients = torch::ones({options_.degree + 1});
    for (int64_t j = 1; j <= options_.degree; ++j)
      coefficients[j] = coefficients[j - 1] / std::sqrt(static_cast<double>(j));
    return ops::polynomial_features(keys, coefficients);
  }

  /// |M k - v|^2 over |v|^2 of the last pairs, M the memory behind the row.
  Tensor error(const PairRows& rows) const {
    const int64_t batch = rows.keys.size(0), before = options_.window - 1;
    const Tensor keys = features(rows.keys).unsqueeze(1), values = rows.values.unsqueeze(1);  // one head
    const Tensor none = torch::zeros({batch, 1, options_.pairs});
    ops::DeepMemoryRule rule;
    rule.optimizer = ops::DeepMemoryRule::Optimizer::kDescent;
    rule.window = options_.window;
    ops::DeepMemoryTokens tokens;
    tokens.q = keys;
    tokens.k = torch::constant_pad_nd(keys, {0, 0, before, 0});
    tokens.v = torch::constant_pad_nd(values, {0, 0, before, 0});
    tokens.omega = torch::constant_pad_nd(torch::ones_like(none), {before, 0});
    tokens.log_retain = tokens.log_momentum = none;
    tokens.lr = rate_->value().expand_as(none);
    ops::DeepMemoryState state;
    state.memory = state.chunk_start = {torch::zeros({batch, 1, options_.width, keys.size(-1)})};
    ops::deep_memory(rule, tokens, /*phase=*/0, state);
    const auto last = [&](const Tensor& x) { return x.narrow(2, options_.pairs - options_.judged, options_.judged); };
    const Tensor recalled = torch::matmul(last(keys), state.memory[0].transpose(-1, -2));
    return (recalled - last(values)).square().mean() / last(values).square().mean();
  }

  OnePassOptions options_;
  TrainOptions train_;
  std::shared_ptr<Rate> rate_ = std::make_shared<Rate>();
};

const bool registered = tasks().add(
    "one_pass",
    {"a linear memory that learns random pairs in one pass; metrics: error, residual (of the best memory), rate",
     [](const Config& recipe, const std::string& name) { return std::make_unique<OnePassTask>(recipe, name); },
     /*brings_model=*/true});

}  // namespace

PairRows pair_rows(int64_t rows, const OnePassOptions& options, uint64_t seed, int64_t first) {
  PairRows result{torch::empty({rows, options.pairs, options.width}),
                  torch::empty({rows, options.pairs, options.width})};
  const int64_t size = options.pairs * options.width;
  for (int64_t b = 0; b < rows; ++b) {
    Random random(mixed(seed, static_cast<uint64_t>(first + b)));
    std::normal_distribution<float> normal;
    for (float* row : {result.keys.data_ptr<float>() + b * size, result.values.data_ptr<float>() + b * size}) {
      for (int64_t i = 0; i < size; ++i) row[i] = normal(random);
    }
  }
  result.keys = result.keys / torch::linalg_vector_norm(result.keys, 2, torch::IntArrayRef{-1}, /*keepdim=*/true);
  return result;
}

double least_residual(const Tensor& keys, const Tensor& values) {
  const Tensor k = keys.to(torch::kFloat64), v = values.to(torch::kFloat64);
  const Tensor memory = torch::matmul(torch::linalg_pinv(k), v);
  return ((torch::matmul(k, memory) - v).square().mean() / v.square().mean()).item<double>();
}

}  // namespace seqloom
