#include "models/encoder.h"

#include <fmt/ostream.h>
#include <torch/nn/modules/container/modulelist.h>

#include "mixers/heads.h"
#include "mixers/token_positions.h"
#include "models/layers.h"

namespace seqloom {
namespace {

Embedding table_of(int64_t rows, int64_t width) {
  Embedding table(rows, width);
  if (!WithoutInitialisation::on()) torch::nn::init::normal_(table->weight, 0, 0.02);  // BERT's
  return table;
}

Tensor rows_at(const Embedding& table, const Tensor& at, int64_t count, const char* what) {
  if (at.numel() > 0 && (at.min().item<int64_t>() < 0 || at.max().item<int64_t>() >= count)) {
    misuse("{} is outside 0..{}", what, count - 1);
  }
  return table->rows(at);
}

/// The vectors of each sequence's first token, [R, D].
Tensor first_tokens(const Tensor& hidden, const Layout& layout) {
  if (!layout.is_packed()) return hidden.select(1, 0);
  const Tensor offsets = layout.offsets();
  if (offsets.diff().min().item<int64_t>() < 1) misuse("a sequence without tokens has no vector");
  return hidden[0].index_select(0, offsets.narrow(0, 0, offsets.size(0) - 1));
}

}  // namespace

Encoder::Encoder(int64_t vocabulary, const Config& table, const std::string& where)
    : vocabulary_(vocabulary), options_(read_options<EncoderOptions>(table, where)) {
  const int64_t width = options_.width, rows = options_.vocabulary_rows.value_or(vocabulary);
  if (rows < vocabulary) {
    misuse("{}.vocabulary_rows = {}: there are {} tokens, each of which needs a row", where, rows, vocabulary);
  }
  embedding_ = register_module("embedding", table_of(rows, width));
  position_ = register_module("position", table_of(options_.max_length, width));
  token_type_ = register_module("token_type", table_of(options_.token_types, width));
  const ResidualOptions& residual = options_.residual;
  embedding_norm_ = register_module("embedding_norm", std::make_shared<Norm>(residual.norm, width, residual.norm_eps));
  layers_ = make_layers(width, residual, options_.layers, options_.channel, where + ".layers");
  auto list = register_module("layers", torch::nn::ModuleList());
  for (const auto& layer : layers_) list->push_back(layer);
  if (options_.pooler) pooler_ = register_module("pooler", linear(width, width, /*bias=*/true));
}

Tensor Encoder::embed(const Tensor& ids, const Tensor& token_types, const Pass& pass) {
  if (ids.dim() != 2 || ids.size(1) < 1) misuse("ids are {}, expected [B, T] with T >= 1", fmt::streamed(ids.sizes()));
  if (token_types.defined() && token_types.sizes() != ids.sizes()) {
    misuse("token types are {}, expected {} as ids", fmt::streamed(token_types.sizes()), fmt::streamed(ids.sizes()));
  }
  const Tensor at = pass.positions.defined() ? pass.positions : counted_positions(ids, pass.layout);
  const Tensor types = token_types.defined() ? token_types : torch::zeros({1}, torch::kInt64);
  return rows_at(embedding_, ids, vocabulary_, "a token id") +
         rows_at(token_type_, types, options_.token_types, "a token type") +
         rows_at(position_, at, options_.max_length, "a position (model.max_length)");
}

Tensor Encoder::hidden(const Tensor& ids, const Tensor& token_types, Pass& pass) {
  if (pass.layout.is_packed()) pass.layout.check_packed(ids);
  Tensor x = embedding_norm_->forward(embed(ids, token_types, pass));
  for (const auto& layer : layers_) x = layer->forward(x, pass);
  return x;
}

Tensor Encoder::pooled(const Tensor& hidden, const Layout& layout) {
  if (pooler_.is_empty()) misuse("this encoder has no pooler (model.pooler = false)");
  return torch::tanh(pooler_(first_tokens(hidden, layout)));
}

Tensor pooled_tokens(const Tensor& hidden, const Layout& layout, const std::string& mode) {
  if (mode == "cls") return first_tokens(hidden, layout);
  if (mode != "mean" && mode != "max") misuse("pooling \"{}\": expected mean, max or cls", mode);
  Tensor tokens = hidden.flatten(0, 1), lengths;
  if (layout.is_packed()) {
    lengths = layout.offsets().diff();
  } else {
    const Tensor keep = layout.keep(hidden.size(0), hidden.size(1));
    lengths = keep.defined() ? keep.sum(1) : torch::full({hidden.size(0)}, hidden.size(1), torch::kInt64);
    if (keep.defined()) tokens = hidden.index({keep});
  }
  if (lengths.min().item<int64_t>() < 1) misuse("a sequence without tokens has no vector");
  return at::segment_reduce(tokens, mode, lengths, {}, {}, /*axis=*/0);
}

}  // namespace seqloom
