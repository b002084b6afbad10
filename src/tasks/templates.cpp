#include "tasks/templates.h"

#include <array>
#include <random>

#include "base/random.h"
#include "models/decoder.h"
#include "train/trainer.h"

namespace seqloom {
namespace {

constexpr uint64_t kEvaluationSeed = 0x6576616c;  // evaluation series are the same for every recipe and seed
constexpr int64_t kWidth = 8;                     // of a template, and of the window that is a token
constexpr std::array<std::array<float, kWidth>, 4> kTemplates = {{{1, 1, 1, 1, -1, -1, -1, -1},
                                                                  {1, -1, 1, -1, 1, -1, 1, -1},
                                                                  {1, 1, -1, -1, 1, 1, -1, -1},
                                                                  {-1, 0, 1, 2, 2, 1, 0, -1}}};

/// A stack of layers between a projection of each token's window and the scores of the classes, read at the last token.
class Classifier : public torch::nn::Module {
 public:
  Classifier(const Config& table, const std::string& where) {
    decoder = register_module("decoder", std::make_shared<Decoder>(kTemplates.size(), table, where));
    input_ = register_module("input", Linear(kWidth, decoder->width()));
  }

  /// windows [B, T, 8] -> scores [B, 4].
  torch::Tensor scores(const torch::Tensor& windows, Pass& pass) {
    const torch::Tensor hidden = decoder->hidden_of(input_(windows), pass);
    return decoder->logits(hidden.select(1, hidden.size(1) - 1));
  }

  std::shared_ptr<Decoder> decoder;

 private:
  Linear input_{nullptr};
};

class TemplateTask final : public Task {
 public:
  TemplateTask(const Config& recipe, const std::string& name)
      : options_(read_options<TemplateOptions>(recipe["task"], name + ": task", {"kind"})),
        train_(read_options<TrainOptions>(recipe.value("train", Config::object()), name + ": train")) {
    if (recipe.contains("distill")) misuse("{}: distill: the task templates has no teacher", name);
    classifier_ = std::make_shared<Classifier>(recipe["model"], name + ": model");
  }

  torch::nn::Module& model() override { return *classifier_; }
  int64_t tokens_per_batch() const override { return train_.batch * options_.length; }
  std::string main_metric() const override { return "accuracy"; }
  bool less_is_better() const override { return false; }
  void set_checkpointing(bool on) override { classifier_->decoder->set_checkpointing(on); }
  std::vector<torch::Tensor> without_weight_decay() const override {
    return classifier_->decoder->without_weight_decay();
  }

  torch::Tensor loss(int64_t index) override {
    const TemplateRows rows = template_rows(train_.batch, options_, train_.seed, index * train_.batch);
    Pass pass;
    torch::Tensor loss = torch::cross_entropy_loss(classifier_->scores(rows.windows, pass), rows.classes);
    for (const auto& extra : pass.losses) loss = loss + extra;
    return loss;
  }

  std::map<std::string, double> evaluate() override {
    double right = 0, loss = 0;
    for (int64_t done = 0; done < options_.eval_rows; done += train_.batch) {
      const int64_t count = std::min(train_.batch, options_.eval_rows - done);
      const TemplateRows rows = template_rows(count, options_, kEvaluationSeed, done);
      Pass pass;
      const torch::Tensor scores = classifier_->scores(rows.windows, pass);
      right += scores.argmax(-1).eq(rows.classes).sum().item<double>();
      loss += torch::cross_entropy_loss(scores, rows.classes).item<double>() * static_cast<double>(count);
    }
    const auto all = static_cast<double>(options_.eval_rows);
    return {{"accuracy", right / all}, {"loss", loss / all}};
  }

 private:
  TemplateOptions options_;
  TrainOptions train_;
  std::shared_ptr<Classifier> classifier_;
};

const bool registered = tasks().add(
    "templates",
    {"which of four templates hides in a noisy series; metrics: accuracy, loss",
     [](const Config& recipe, const std::string& name) { return std::make_unique<TemplateTask>(recipe, name); }});

}  // namespace

TemplateRows template_rows(int64_t rows, const TemplateOptions& options, uint64_t seed, int64_t first) {
  const int64_t before = kWidth - 1;
  torch::Tensor series = torch::zeros({rows, before + options.length});
  TemplateRows result;
  result.classes = torch::empty({rows}, torch::kInt64);
  for (int64_t b = 0; b < rows; ++b) {
    Random random(mixed(seed, static_cast<uint64_t>(first + b)));
    std::normal_distribution<float> noise(0, static_cast<float>(options.noise));
    float* value = series.data_ptr<float>() + b * series.size(1) + before;
    for (int64_t t = 0; t < options.length; ++t) value[t] = options.noise > 0 ? noise(random) : 0;
    const int64_t which = random.below(kTemplates.size()), place = random.below(options.length - before);
    for (int64_t t = 0; t < kWidth; ++t) {
      value[place + t] +=
          static_cast<float>(options.height) * kTemplates[static_cast<size_t>(which)][static_cast<size_t>(t)];
    }
    result.classes[b] = which;
  }
  result.windows = series.unfold(1, kWidth, 1).contiguous();
  return result;
}

}  // namespace seqloom
