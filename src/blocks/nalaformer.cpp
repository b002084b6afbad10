#include "blocks/nalaformer.h"

#include "mixers/heads.h"

namespace seqloom {
namespace {

Tensor without_padding(const Tensor& x, const Tensor& keep) {
  return keep.defined() ? x * keep.unsqueeze(-1) : x;
}

}  // namespace

GridMlp::GridMlp(int64_t width, int64_t hidden) {
  fc1_ = register_module("fc1", linear(width, hidden, true));
  fc2_ = register_module("fc2", linear(hidden, width, true));
  dwconv_ = register_module("dwconv", std::make_shared<GridConv>(hidden, 3));
}

Tensor GridMlp::forward(const Tensor& x, const Tensor& keep, int64_t columns) {
  const Tensor u = without_padding(torch::gelu(fc1_(x)), keep);
  return fc2_(u + dwconv_->forward(u, columns));
}

NalaformerBlock::NalaformerBlock(int64_t width, const NalaformerBlockOptions& options, std::shared_ptr<Mixer> attention)
    : options_(options), attention_(std::move(attention)) {
  if (attention_->causal()) misuse("the attention of an image's block must not be causal; set causal = false");
  register_module("attn", attention_);
  norm1_ = register_module("norm1", std::make_shared<Norm>("layer", width, options.norm_eps));
  norm2_ = register_module("norm2", std::make_shared<Norm>("layer", width, options.norm_eps));
  cpe1_ = register_module("cpe1", std::make_shared<GridConv>(width, 3));
  cpe2_ = register_module("cpe2", std::make_shared<GridConv>(width, 3));
  ffn_ = register_module("ffn", std::make_shared<GridMlp>(width, options.ffn_dim.value_or(4 * width)));
  if (!options.layerscale) return;
  gamma_1_ = register_parameter("gamma_1", torch::full({width}, *options.layerscale));
  gamma_2_ = register_parameter("gamma_2", torch::full({width}, *options.layerscale));
}

Tensor NalaformerBlock::branch(const Tensor& y, const Tensor& scale) {
  const Tensor scaled = scale.defined() ? y * scale : y;
  if (!is_training() || options_.drop_path == 0) return scaled;
  const double stays = 1 - options_.drop_path;
  return scaled * torch::full({y.size(0), 1, 1}, stays, y.options().requires_grad(false)).bernoulli() / stays;
}

Tensor NalaformerBlock::forward(const Tensor& x, Pass& pass) {
  if (pass.layout.is_packed()) misuse("packed rows are no images; give a batch of images");
  const Tensor keep = pass.layout.keep(x.size(0), x.size(1));
  const int64_t columns = options_.width;
  Tensor y = x + cpe1_->forward(without_padding(x, keep), columns);
  y = y + branch(attention_->forward(norm1_->forward(y), pass), gamma_1_);
  y = y + cpe2_->forward(without_padding(y, keep), columns);
  return y + branch(ffn_->forward(norm2_->forward(y), keep, columns), gamma_2_);
}

}  // namespace seqloom
