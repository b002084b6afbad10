#pragma once
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "blocks/linear.h"
#include "blocks/residual.h"

namespace seqloom {

struct EncoderOptions {
  int64_t width = 256;
  Config layers = Config::array();
  Config channel = {{"kind", "none"}};
  int64_t max_length = 512, token_types = 2;
  bool pooler = false;
  std::optional<int64_t> vocabulary_rows;
  ResidualOptions residual = {"layer", "post", 1e-12};

  void describe(Fields& f) {
    f.add("width", width, "model width D").at_least(1).at_most(1 << 16);
    f.add("layers", layers, "list of { mixer = {...}, channel = {...}, conv = 0, repeat = 1 }");
    f.add("channel", channel, "channel mixer of layers that name none");
    f.add("max_length", max_length, "length of the learned position table").at_least(1).at_most(1 << 24);
    f.add("token_types", token_types, "kinds of tokens, such as those of a first and a second text")
        .at_least(1)
        .at_most(1 << 16);
    f.add("pooler", pooler, "a projection of the first token's vector that stands for the whole text");
    f.add("vocabulary_rows", vocabulary_rows, "rows of the embedding where that is padded; none: one a token")
        .at_least(1)
        .at_most(1 << 26);
    residual.describe(f);
  }
};

/// BERT (Devlin et al. 2018, arXiv 1810.04805): norm(word + position + token type), a stack of residual blocks. All
/// layouts are read, packed rows without ever being padded where the layers' mixers take them.
class Encoder : public torch::nn::Module {
 public:
  /// Throws UsageError that begins with `where` and names the key.
  Encoder(int64_t vocabulary, const Config& table, const std::string& where);

  /// ids [B, T] int64, packed [1, N], token types likewise (undefined: all 0) -> [B, T, D]. What stands at padding is
  /// unspecified. Throws UsageError for an id, a type or a position that is out of range.
  Tensor hidden(const Tensor& ids, const Tensor& token_types, Pass& pass);
  /// tanh(W h_first + b) of each sequence, [R, D]. Throws UsageError where the model has no pooler.
  Tensor pooled(const Tensor& hidden, const Layout& layout);

  int64_t vocabulary() const { return vocabulary_; }
  int64_t width() const { return options_.width; }
  int64_t max_length() const { return options_.max_length; }

 private:
  Tensor embed(const Tensor& ids, const Tensor& token_types, const Pass& pass);

  int64_t vocabulary_;
  EncoderOptions options_;
  Embedding embedding_{nullptr}, position_{nullptr}, token_type_{nullptr};
  std::shared_ptr<Norm> embedding_norm_;
  std::vector<std::shared_ptr<ResidualBlock>> layers_;
  Linear pooler_{nullptr};
};

/// One vector a sequence from hidden [B, T, D] or packed [1, N, D]: the "mean" or the "max" of its real tokens, or that
/// of its first one, "cls". [R, D]. Throws UsageError for a sequence without tokens.
Tensor pooled_tokens(const Tensor& hidden, const Layout& layout, const std::string& mode);

}  // namespace seqloom
