#pragma once
#include <memory>
#include <string>

#include "io/token_file.h"
#include "io/tokenizer.h"
#include "models/decoder.h"
#include "train/checkpoint.h"
#include "train/task.h"

namespace seqloom {

struct LanguageOptions {
  std::string data, tokenizer = "bytes";
  int64_t context = 512, eval_tokens = 65536;
  double held_out = 0.05;

  void describe(Fields& f) {
    f.add("data", data, "the text file");
    f.add("tokenizer", tokenizer, "\"bytes\" or a Hugging Face tokenizer.json");
    f.add("context", context, "tokens T of a training row").at_least(1).at_most(1 << 24);
    f.add("held_out", held_out, "part at the end of the text that is kept for evaluation").greater_than(0).less_than(1);
    f.add("eval_tokens", eval_tokens, "held-out tokens that an evaluation reads at the most").at_least(1);
  }
};

/// A trained language model with all that using it needs.
struct LanguageModel {
  Checkpoint checkpoint;
  LanguageOptions options;
  std::shared_ptr<Tokenizer> tokenizer;
  std::shared_ptr<Decoder> decoder;
};

/// For use its weights are mapped from the file (map_model); a trainable one has them for itself, in float32. Throws
/// Error when `path` is not a checkpoint of a language model.
LanguageModel load_language_model(const std::string& path, bool trainable = false);

/// How well a decoder predicts tokens [begin, end) of a text, read in rows of `context` tokens. `watch` is shown the
/// logits of each row, [T, vocabulary].
struct TextScore {
  double nats = 0;  // summed over predicted tokens
  int64_t tokens = 0, bytes = 0;
  double bits_per_byte() const;
  double perplexity() const;
};
TextScore score_text(
    Decoder& decoder, const Tokenizer& tokenizer, const TokenFile& text, int64_t begin, int64_t end, int64_t context,
    const std::function<void(int64_t done)>& progress = [](int64_t) {},
    const std::function<void(const Tensor& logits)>& watch = {});

}  // namespace seqloom
