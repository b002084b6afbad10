#include "mixers/deltanet.h"

#include "mixers/heads.h"
#include "ops/precision.h"
#include "ops/rms_norm.h"

namespace seqloom {

SEQLOOM_REGISTER_MIXER("deltanet", DeltaNet);

DeltaNet::DeltaNet(int64_t width, const Options& o) : DeltaMixer(width), options_(o) {
  const int64_t key = head_width(width, o.expand_k, o.heads, "key"),
                value = head_width(width, o.expand_v, o.heads, "value");
  q_proj_ = register_module("q_proj", linear(width, o.heads * key, false));
  k_proj_ = register_module("k_proj", linear(width, o.heads * key, false));
  v_proj_ = register_module("v_proj", linear(width, o.heads * value, false));
  if (o.use_beta) b_proj_ = register_module("b_proj", linear(width, o.heads, false));
  if (o.use_gate) g_proj_ = register_module("g_proj", linear(width, o.heads * value, false));
  o_norm_ = register_module("o_norm", std::make_shared<RmsNorm>(value, o.norm_eps));
  o_proj_ = register_module("o_proj", linear(o.heads * value, width, false));
  set_up(o.heads, key, value, o.heads * key, o.use_short_conv ? o.conv_size : 0, o.qk_activation == "silu");
}

Tensor DeltaNet::activated(const Tensor& x) const {
  // the convolution has the silu in it
  if (options_.qk_activation == "silu") return has_conv() ? x : torch::silu(x);
  if (options_.qk_activation == "relu") return torch::relu(x);
  if (options_.qk_activation == "elu") return torch::elu(x) + 1;
  return x;
}

Tensor DeltaNet::normalized(const Tensor& x) const {
  if (options_.qk_norm == "l2") return ops::l2_norm(x, options_.l2_eps);
  const Tensor sum = x.sum(-1, /*keepdim=*/true);
  return x / sum.masked_fill(sum == 0, 1);  // padding: a row of zeros stays one
}

DeltaNet::Projected DeltaNet::project(const Tensor& x, Memory& memory, const Columns& columns) {
  Projected p;
  p.q = normalized(activated(split_heads(convolved(q_proj_(x), "q", memory, columns), options_.heads)));
  p.k = normalized(activated(split_heads(convolved(k_proj_(x), "k", memory, columns), options_.heads)));
  const Tensor v = convolved(v_proj_(x), "v", memory, columns);
  p.v = split_heads(has_conv() ? v : torch::silu(v), options_.heads);
  p.beta = options_.use_beta
               ? torch::sigmoid(ops::widened(b_proj_(x)))
               : torch::ones({x.size(0), x.size(1), options_.heads}, ops::widened(x).options().requires_grad(false));
  if (options_.allow_neg_eigval) p.beta = 2 * p.beta;
  return p;
}

Tensor DeltaNet::finish(const Tensor& o, const Tensor& x) {
  const Tensor y = options_.use_gate ? o_norm_->gated(o, split_heads(g_proj_(x), options_.heads)) : o_norm_->forward(o);
  return o_proj_(merge_heads(y).to(x.scalar_type()));
}

}  // namespace seqloom
