#include "models/decoder.h"

#include <torch/nn/modules/container/modulelist.h>

#include <fmt/ostream.h>
#include <algorithm>
#include <cmath>
#include <limits>

#include "blocks/positions.h"
#include "mixers/cached_mixer.h"
#include "mixers/step_parts.h"
#include "mixers/token_positions.h"
#include "models/checkpointing.h"
#include "models/layers.h"
#include "ops/precision.h"
#include "ops/row_by_row.h"

namespace seqloom {

Decoder::Decoder(int64_t vocabulary, const Config& table, const std::string& where)
    : vocabulary_(vocabulary), options_(read_options<DecoderOptions>(table, where)) {
  const int64_t width = options_.width;
  // Tied, this makes logits of unit variance; as an input it is large enough not to drown in what the first layers add,
  // which start as torch's linear layers do and not at GPT-2's 0.02.
  const double std = 1 / std::sqrt(static_cast<double>(width));
  const int64_t rows = options_.vocabulary_rows.value_or(vocabulary);
  if (rows < vocabulary) {
    misuse("{}.vocabulary_rows = {}: there are {} tokens, each of which needs a row", where, rows, vocabulary);
  }
  embedding_ = register_module("embedding", Embedding(rows, width));
  const bool random = !WithoutInitialisation::on();
  if (random) torch::nn::init::normal_(embedding_->weight, 0, std);
  if (options_.position == "learned") {
    position_ = register_module("position", torch::nn::Embedding(options_.max_length, width));
    torch::nn::init::normal_(position_->weight, 0, std);
  }
  layers_ = make_layers(width, options_.residual, options_.layers, options_.channel, where + ".layers");
  auto list = register_module("layers", torch::nn::ModuleList());
  for (const auto& layer : layers_) list->push_back(layer);
  final_norm_ =
      register_module("final_norm", std::make_shared<Norm>(options_.residual.norm, width, options_.residual.norm_eps));
  if (!options_.tied) {
    head_ = register_module("head", Linear(width, rows, false));
    if (random) torch::nn::init::normal_(head_->weight, 0, std);
  }
  if (random) shrink_branch_outputs();
}

void Decoder::shrink_branch_outputs() {
  // Each branch adds to the residual stream: with n branches their last projections start 1/sqrt(n) smaller, so that
  // the stream's variance does not grow with depth (GPT-2; Mamba does the same).
  int64_t branches = 0;
  for (const auto& layer : layers_) branches += layer->branches();
  torch::NoGradGuard no_grad;
  for (auto& parameter : named_parameters()) {
    for (const char* last : {"o_proj.weight", "out_proj.weight", "fc2.weight", "down_proj.weight"}) {
      if (parameter.key().ends_with(last)) parameter.value().div_(std::sqrt(static_cast<double>(branches)));
    }
  }
}

Tensor Decoder::embed(const Tensor& ids) const {
  if (ids.dim() != 2 || ids.size(1) < 1) misuse("ids are {}, expected [B, T] with T >= 1", fmt::streamed(ids.sizes()));
  if (ids.min().item<int64_t>() < 0 || ids.max().item<int64_t>() >= vocabulary_) {
    misuse("a token id is outside 0..{}", vocabulary_ - 1);
  }
  return embedding_->rows(ids);
}

Tensor Decoder::positioned(const Tensor& x, int64_t first, const Pass& pass) {
  if (options_.position == "none") return x;
  const Tensor at = pass.positions.defined() ? pass.positions : counted_positions(x, pass.layout) + first;
  if (options_.position == "sinusoidal") {
    const auto vectors = [this](const Tensor& t) { return sinusoidal_at(t, options_.width); };
    return x + ops::elementwise(at, vectors).to(x.scalar_type());
  }
  if (at.max().item<int64_t>() >= options_.max_length) {
    misuse("position {} is beyond model.max_length = {}", at.max().item<int64_t>(), options_.max_length);
  }
  return x + position_(at);
}

Tensor Decoder::hidden(const Tensor& ids, Pass& pass) {
  return hidden_of(embed(ids), pass);
}

Tensor Decoder::hidden_of(const Tensor& vectors, Pass& pass) {
  Tensor x = positioned(vectors, 0, pass);
  const bool checkpointing = checkpointing_ && torch::GradMode::is_enabled();
  const size_t losses = pass.losses.size();
  for (const auto& layer : layers_) {
    // by value: the block runs again in the backward pass, when this pass is gone
    x = checkpointing
            ? checkpointed([layer, again = pass](const Tensor& input) mutable { return layer->forward(input, again); },
                           x)
            : layer->forward(x, pass);
  }
  if (checkpointing && pass.losses.size() != losses) {
    misuse("a layer adds an auxiliary loss: train it with train.checkpoint_activations = false");
  }
  return final_norm_->forward(x);
}

Tensor Decoder::logits(const Tensor& hidden) {
  return ops::widened(head_ ? head_(hidden) : embedding_->forward(hidden)).narrow(-1, 0, vocabulary_);
}

Tensor Decoder::extend(const Tensor& ids, Memory& memory) {
  Pass pass;
  Tensor x = positioned(embed(ids), memory.tokens, pass);
  for (size_t i = 0; i < layers_.size(); ++i)
    x = layers_[i]->extend(x, memory.child("layers").child(std::to_string(i)), pass);
  memory.tokens += ids.size(1);
  return final_norm_->forward(x);
}

Tensor Decoder::step(const Tensor& ids, at::ArrayRef<Memory*> streams) {
  if (ids.dim() != 1 || ids.size(0) != static_cast<int64_t>(streams.size()) || streams.empty()) {
    misuse("ids are {}, expected [S] for S = {} streams, at least one", fmt::streamed(ids.sizes()), streams.size());
  }
  const std::vector<int64_t> positions = positions_of(streams);
  const int64_t last = *std::max_element(positions.begin(), positions.end());
  if (last >= longest()) misuse("a stream has read {} tokens, and the model can read no more than {}", last, longest());
  Pass pass;
  const ops::RowByRow row_by_row;
  pass.positions = torch::tensor(positions, torch::TensorOptions(torch::kInt64).device(ids.device())).unsqueeze(1);
  Tensor x = positioned(embed(ids.unsqueeze(1)), 0, pass).squeeze(1);
  pass.positions = Tensor();  // mixers count for themselves
  std::vector<Memory*> of_layer(streams.size());
  for (size_t i = 0; i < layers_.size(); ++i) {
    const std::string name = std::to_string(i);
    for (size_t s = 0; s < streams.size(); ++s) of_layer[s] = &streams[s]->child("layers").child(name);
    x = layers_[i]->step(x, of_layer, pass);
  }
  for (Memory* memory : streams) ++memory->tokens;
  return final_norm_->forward(x);
}

int64_t Decoder::longest() const {
  int64_t longest = options_.position == "learned" ? options_.max_length : std::numeric_limits<int64_t>::max();
  for (const auto& layer : layers_) longest = std::min(longest, layer->longest());
  return longest;
}

Memory Decoder::empty_memory(int64_t batch) const {
  Memory memory;
  for (size_t i = 0; i < layers_.size(); ++i)
    memory.child("layers").child(std::to_string(i)) = layers_[i]->empty_memory(batch);
  return memory;
}

void Decoder::cache_every(int64_t tokens) {
  CachingOptions options;
  options.aggregate = "mean";
  options.segment = tokens;
  std::vector<std::shared_ptr<Mixer>> cached;  // all of them before the first is put in place: one may be refused
  for (size_t i = 0; i < layers_.size(); ++i) {
    const auto mixer = std::dynamic_pointer_cast<Mixer>(layers_[i]->mixer().shared_from_this());
    cached.push_back(std::make_shared<CachedMixer>(mixer, options, fmt::format("layer {}", i + 1)));
  }
  for (size_t i = 0; i < layers_.size(); ++i) layers_[i]->replace_mixer(std::move(cached[i]));
}

int64_t Decoder::parameter_count() const {
  int64_t count = 0;
  for (const auto& parameter : parameters()) count += parameter.numel();
  return count;
}

std::vector<Tensor> Decoder::without_weight_decay() const {
  std::vector<Tensor> exempt;
  for (const auto& parameter : parameters()) {
    if (parameter.dim() < 2) exempt.push_back(parameter);
  }
  for (const auto& layer : layers_) {
    for (const auto& parameter : layer->mixer().without_weight_decay()) exempt.push_back(parameter);
  }
  return exempt;
}

}  // namespace seqloom
