#pragma once
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "blocks/linear.h"
#include "blocks/residual.h"

namespace seqloom {

struct DecoderOptions {
  int64_t width = 256;
  Config layers = Config::array();
  Config channel = {{"kind", "none"}};
  std::string position = "none";
  int64_t max_length = 2048;
  bool tied = true;
  std::optional<int64_t> vocabulary_rows;
  ResidualOptions residual;

  void describe(Fields& f) {
    f.add("width", width, "model width D").at_least(1).at_most(1 << 16);
    f.add("layers", layers, "list of { mixer = {...}, channel = {...}, conv = 0, repeat = 1 }");
    f.add("channel", channel, "channel mixer of layers that name none");
    f.add("position", position, "position vectors added to the embedding").one_of({"none", "learned", "sinusoidal"});
    f.add("max_length", max_length, "length of the learned position table").at_least(1).at_most(1 << 24);
    f.add("tied", tied, "the output projection is the embedding matrix");
    f.add("vocabulary_rows", vocabulary_rows, "rows of the embedding where that is padded; none: one a token")
        .at_least(1)
        .at_most(1 << 26);
    residual.describe(f);
  }
};

/// A language model: embedding, a stack of residual blocks, a final norm, logits. Layers come from the recipe's list:
///   layers = [ { repeat = 3, mixer = { kind = "mamba" } }, { mixer = { kind = "attention", window = 128 } } ]
class Decoder : public torch::nn::Module {
 public:
  /// Throws UsageError that begins with `where` and names the key.
  Decoder(int64_t vocabulary, const Config& table, const std::string& where);

  /// ids [B, T] int64 -> hidden [B, T, D] after the final norm.
  Tensor hidden(const Tensor& ids, Pass& pass);
  /// The same for vectors x [B, T, D] in place of embedded tokens, as of a series; position vectors are added to them.
  Tensor hidden_of(const Tensor& x, Pass& pass);
  /// hidden [..., D] -> logits [..., vocabulary] float32.
  Tensor logits(const Tensor& hidden);
  /// [rows, D], of a model that is trained: logits = hidden @ this^T, of which the rows that pad the vocabulary are
  /// left out.
  const Tensor& output_weight() const { return head_ ? head_->weight : embedding_->weight; }

  /// Keeps the matrices in another format, the embedding among them; from then on the model is used, not trained.
  /// Returns the greatest relative error of a matrix (LinearImpl::store_as).
  double store_as(const WeightFormat& format) { return seqloom::store_as(*this, format); }

  /// The streaming form of `hidden`: reads T >= 1 more tokens. Throws UsageError when a layer is bidirectional.
  Tensor extend(const Tensor& ids, Memory& memory);
  /// One more token of each of S streams, ids [S] int64 -> hidden [S, D] (CausalMixer::step). Throws before it changes
  /// anything when a token is outside the vocabulary or a stream is as long as the model can read.
  Tensor step(const Tensor& ids, at::ArrayRef<Memory*> streams);
  /// How many tokens a stream can read at the most.
  int64_t longest() const;
  Memory empty_memory(int64_t batch) const;

  /// Post-training Memory Caching (arXiv 2602.24281): from now on every layer's mixer keeps its memory after each
  /// `tokens` tokens, begins a new one, and answers with the mean of what the kept ones and the running one say. For a
  /// trained recurrent model that is to read more than the rows of `tokens` tokens it was trained on. Throws UsageError
  /// naming the layer whose mixer has no memory of fixed size.
  void cache_every(int64_t tokens);

  int64_t vocabulary() const { return vocabulary_; }
  int64_t width() const { return options_.width; }
  int64_t layer_count() const { return static_cast<int64_t>(layers_.size()); }
  Mixer& mixer(int64_t layer) { return layers_.at(layer)->mixer(); }
  int64_t parameter_count() const;
  /// Parameters that must not decay: one-dimensional ones and those that mixers name.
  std::vector<Tensor> without_weight_decay() const;
  /// Recompute each block in the backward pass instead of keeping its activations.
  void set_checkpointing(bool on) { checkpointing_ = on; }

 private:
  void shrink_branch_outputs();
  Tensor embed(const Tensor& ids) const;
  Tensor positioned(const Tensor& x, int64_t first, const Pass& pass);

  int64_t vocabulary_;
  DecoderOptions options_;
  Embedding embedding_{nullptr};
  torch::nn::Embedding position_{nullptr};
  std::vector<std::shared_ptr<ResidualBlock>> layers_;
  std::shared_ptr<Norm> final_norm_;
  Linear head_{nullptr};
  bool checkpointing_ = false;
};

}  // namespace seqloom
