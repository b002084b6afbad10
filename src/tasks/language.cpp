#include "tasks/language.h"

#include <cmath>
#include <filesystem>
#include <numbers>

#include "base/error.h"
#include "base/random.h"
#include "train/distill.h"
#include "train/example.h"
#include "train/token_loss.h"
#include "train/trainer.h"

namespace seqloom {
namespace {

constexpr const char* kTokenizerFile = "tokenizer.json";

std::string cache_path(const std::string& data) {
  return data + ".tokens";
}

/// Next-token prediction on a text file.
class LanguageTask final : public Task, public HasExample {
 public:
  LanguageTask(const Config& recipe, const std::string& name)
      : options_(read_options<LanguageOptions>(recipe["task"], name + ": task", {"kind"})),
        train_(read_options<TrainOptions>(recipe.value("train", Config::object()), name + ": train")) {
    if (options_.data.empty()) misuse("{}: task.data is missing; name a text file, or --set task.data=FILE", name);
    tokenizer_ = make_tokenizer(options_.tokenizer);
    text_ = std::make_unique<TokenFile>(options_.data, *tokenizer_, cache_path(options_.data));
    train_tokens_ = static_cast<int64_t>(static_cast<double>(text_->size()) * (1 - options_.held_out));
    const int64_t needed = options_.context + 1;
    if (train_tokens_ < needed || text_->size() - train_tokens_ < 2) {
      fail("{}: {} tokens are too few to train on {} and hold some out; give a longer text or a smaller task.context",
           options_.data, text_->size(), needed);
    }
    decoder_ = std::make_shared<Decoder>(tokenizer_->vocabulary(), recipe["model"], name + ": model");
    distillation_ = make_distillation(recipe, name, decoder_);
  }

  torch::nn::Module& model() override { return *decoder_; }
  int64_t tokens_per_batch() const override { return train_.batch * options_.context; }
  std::string main_metric() const override { return "bits_per_byte"; }
  void set_checkpointing(bool on) override { decoder_->set_checkpointing(on); }
  std::vector<torch::Tensor> without_weight_decay() const override { return decoder_->without_weight_decay(); }

  torch::Tensor loss(int64_t index) override {
    const int64_t row = options_.context + 1;
    torch::Tensor rows = torch::empty({train_.batch, row}, torch::kInt64);
    Random random(mixed(train_.seed ^ 0x746578740aULL, index));
    for (int64_t b = 0; b < train_.batch; ++b) {
      text_->read(random.below(train_tokens_ - row + 1), row, rows.data_ptr<int64_t>() + b * row);
    }
    const torch::Tensor ids = rows.narrow(1, 0, options_.context), targets = rows.narrow(1, 1, options_.context);
    if (distillation_) return distillation_->loss(index / train_.accumulate, ids, targets);
    return token_loss(*decoder_, ids, targets);
  }

  double rate_factor(int64_t step) const override { return distillation_ ? distillation_->rate_factor(step) : 1; }

  std::map<std::string, double> evaluate() override {
    if (distillation_) distillation_->apply_updates();
    const int64_t end = std::min(text_->size(), train_tokens_ + options_.eval_tokens + 1);
    const TextScore score = score_text(*decoder_, *tokenizer_, *text_, train_tokens_, end, options_.context);
    std::map<std::string, double> metrics = {{"bits_per_byte", score.bits_per_byte()},
                                             {"perplexity", score.perplexity()}};
    if (distillation_) metrics[kTransferError] = distillation_->transfer_error(example());
    return metrics;
  }

  torch::Tensor example() const override {
    const int64_t count = std::min(options_.context, text_->size() - train_tokens_);
    torch::Tensor row = torch::empty({1, count}, torch::kInt64);
    text_->read(train_tokens_, count, row.data_ptr<int64_t>());
    return row;
  }

  std::map<std::string, std::string> attachments() const override {
    if (tokenizer_->kind() == "bytes") return {};
    return {{kTokenizerFile, read_file(options_.tokenizer)}};
  }

 private:
  LanguageOptions options_;
  TrainOptions train_;
  std::shared_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<TokenFile> text_;
  int64_t train_tokens_ = 0;
  std::shared_ptr<Decoder> decoder_;
  std::unique_ptr<Distillation> distillation_;  // where the recipe has [distill]
};

const bool registered = tasks().add(
    "language",
    {"predict the next token of a text; metric: bits per byte on held-out text",
     [](const Config& recipe, const std::string& name) { return std::make_unique<LanguageTask>(recipe, name); }});

}  // namespace

double TextScore::bits_per_byte() const {
  return nats / std::numbers::ln2 / static_cast<double>(bytes);
}
double TextScore::perplexity() const {
  return std::exp(nats / static_cast<double>(tokens));
}

TextScore score_text(Decoder& decoder, const Tokenizer& tokenizer, const TokenFile& text, int64_t begin, int64_t end,
                     int64_t context, const std::function<void(int64_t)>& progress,
                     const std::function<void(const torch::Tensor&)>& watch) {
  const torch::NoGradGuard no_grad;
  TextScore score;
  for (int64_t at = begin; at + 1 < end; at += context) {
    const int64_t count = std::min(context, end - at - 1);
    torch::Tensor row = torch::empty({1, count + 1}, torch::kInt64);
    text.read(at, count + 1, row.data_ptr<int64_t>());
    Pass pass;
    const torch::Tensor logits = decoder.logits(decoder.hidden(row.narrow(1, 0, count), pass)).squeeze(0);
    if (watch) watch(logits);
    const torch::Tensor targets = row[0].narrow(0, 1, count);
    score.nats += torch::cross_entropy_loss(logits, targets, {}, at::Reduction::Sum).item<double>();
    score.tokens += count;
    for (int64_t t = 0; t < count; ++t) {
      score.bytes +=
          static_cast<int64_t>(tokenizer.token_bytes(static_cast<int32_t>(row[0][t + 1].item<int64_t>())).size());
    }
    progress(score.tokens);
  }
  if (score.tokens == 0) fail("there are fewer than 2 tokens to evaluate on");
  return score;
}

LanguageModel load_language_model(const std::string& path, bool trainable) {
  LanguageModel loaded;
  loaded.checkpoint = open_checkpoint(path);
  const Config& recipe = loaded.checkpoint.recipe;
  const Config task = recipe.value("task", Config::object());
  const Config kind = task.is_object() ? task.value("kind", Config()) : Config();
  if (kind != "language") fail("{}: not a language model (task.kind is {})", path, kind.dump());
  loaded.options = read_options<LanguageOptions>(recipe["task"], loaded.checkpoint.path + ": task", {"kind"});
  const auto& attached = loaded.checkpoint.attachments;
  const auto file = attached.find(kTokenizerFile);
  loaded.tokenizer =
      file == attached.end() ? make_tokenizer("bytes") : parse_tokenizer(file->second, path + ": tokenizer.json");
  const auto make = [&] {
    return std::make_shared<Decoder>(loaded.tokenizer->vocabulary(), recipe.value("model", Config()),
                                     loaded.checkpoint.path + ": model");
  };
  if (recipe.contains("distill")) {
    loaded.decoder = make();
    load_student(loaded.checkpoint, *loaded.decoder);
  } else if (trainable) {
    loaded.decoder = make();
    load_model(loaded.checkpoint, *loaded.decoder);
  } else {
    const WithoutInitialisation about_to_be_mapped;
    loaded.decoder = make();
    map_model(loaded.checkpoint, *loaded.decoder);
  }
  loaded.decoder->eval();
  return loaded;
}

}  // namespace seqloom
