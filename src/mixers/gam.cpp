#include "mixers/gam.h"

#include "mixers/heads.h"
#include "ops/attention.h"

namespace seqloom {

SEQLOOM_REGISTER_MIXER("gam", Gam);

Gam::Gam(int64_t width, const Options& options)
    : WindowMixer(width, options.kernel_size - 1, "conv"), options_(options) {
  causal_conv_ = register_module(
      "causal_conv", std::make_shared<ShortConv>(width, options.kernel_size, /*bias=*/true, /*silu=*/false));
  memory_bank_ = register_parameter("memory_bank", torch::empty({options.num_slots, width}));
  torch::nn::init::xavier_uniform_(memory_bank_);
  gate_ = register_module("gate", linear(width, 2 * width, true));
}

Tensor Gam::looked_up(const Tensor& x) const {
  ops::AttentionRule rule;
  rule.scale = options_.score_scale;
  rule.causal = false;
  const Tensor bank = memory_bank_.unsqueeze(0).unsqueeze(0);  // keys and values of one head that all tokens share
  return ops::attention(x.reshape({1, 1, -1, width()}), bank, bank, rule).view(x.sizes());
}

Tensor Gam::gated(const Tensor& local, const Tensor& x) {
  const auto gates = torch::sigmoid(gate_(x)).chunk(2, -1);
  return torch::addcmul(gates[0] * local, gates[1], looked_up(x));
}

Tensor Gam::read(const Tensor& x, Memory& memory, Pass& pass) {
  const Columns columns(pass.layout, x);
  Tensor window = before(x, pass.layout, memory).transpose(1, 2);
  const Tensor local = causal_conv_->forward(x, window, columns);
  remember(columns.gather(x), columns, memory);
  return gated(local, x);
}

Tensor Gam::mix(const Tensor& x, Pass& pass) {
  if (!options_.bidirectional) return WindowMixer::mix(x, pass);
  // A kernel that ends `right` tokens behind its own is the causal one of that later token.
  const int64_t right = window() - current_tap();
  const Columns columns(pass.layout, x);
  const Tensor local = columns.ahead(columns.gather(x), right, [&](const Tensor& longer, const Layout& layout) {
    const int64_t rows = layout.sequences(x.size(0));
    Tensor nothing = causal_conv_->empty_window(rows, x.options().requires_grad(false));
    return causal_conv_->forward(longer, nothing, Columns(layout, longer));
  });
  return gated(columns.scatter(local), x);
}

std::optional<MatrixForm> Gam::matrix(const Tensor& x) {
  const auto conv = causal_conv_->named_parameters();
  return MatrixForm{
      toeplitz_matrix(conv["weight"].squeeze(1), x.size(1), current_tap()).expand({x.size(0), -1, -1, -1}),
      split_heads(x, width()).transpose(1, 2),
      [this, x, bias = conv["bias"]](const Tensor& o) { return gated(merge_heads(o.transpose(1, 2)) + bias, x); }};
}

}  // namespace seqloom
