#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "io/tokenizer.h"
#include "models/encoder.h"
#include "train/checkpoint.h"

namespace seqloom {

/// [task] of a checkpoint that makes vectors of texts.
struct SentenceOptions {
  std::string pooling = "mean";
  bool normalize = false;
  int64_t max_length = 512;

  void describe(Fields& f) {
    f.add("pooling", pooling, "what a text's vector is made of").one_of({"mean", "max", "cls"});
    f.add("normalize", normalize, "vectors of length 1");
    f.add("max_length", max_length, "tokens of a text that are read, those of the tokenizer's template included")
        .at_least(1)
        .at_most(1 << 24);
  }
};

/// A sentence encoder with all that using it needs.
struct SentenceModel {
  Checkpoint checkpoint;
  SentenceOptions options;
  std::shared_ptr<Tokenizer> tokenizer;
  std::shared_ptr<Encoder> encoder;

  /// A text's ids with the tokenizer's template round them, cut to `max_length`.
  std::vector<int32_t> encode(std::string_view text) const;
  /// One vector a text, [n, D] float32. Texts of like length are read together, packed. `progress` is told how many are
  /// done. Throws UsageError for a text without tokens where the tokenizer adds none.
  Tensor embed(
      const std::vector<std::string>& texts, const std::function<void(int64_t done)>& progress = [](int64_t) {}) const;
  /// The vectors of packed rows, ids [1, N].
  Tensor embed_packed(const Tensor& ids, const Tensor& offsets) const;
};

/// Throws Error when `path` is not a checkpoint of a sentence encoder.
SentenceModel load_sentence_model(const std::string& path);

}  // namespace seqloom
