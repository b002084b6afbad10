#include "mixers/gated_deltanet.h"

#include <cmath>

#include "mixers/heads.h"
#include "ops/precision.h"
#include "ops/rms_norm.h"

namespace seqloom {

SEQLOOM_REGISTER_MIXER("gated_deltanet", GatedDeltaNet);

GatedDeltaNet::GatedDeltaNet(int64_t width, const Options& o)
    : DeltaMixer(width), options_(o), value_heads_(o.num_v_heads.value_or(o.heads)) {
  if (value_heads_ % o.heads != 0) misuse("num_v_heads = {} is not a multiple of heads = {}", value_heads_, o.heads);
  const int64_t value = std::llround(static_cast<double>(o.head_dim) * o.expand_v);
  if (value < 1) misuse("expand_v = {:g} leaves no value channels of head_dim = {}", o.expand_v, o.head_dim);
  const int64_t queries = o.heads * o.head_dim, values = value_heads_ * value;
  q_proj_ = register_module("q_proj", linear(width, queries, false));
  k_proj_ = register_module("k_proj", linear(width, queries, false));
  v_proj_ = register_module("v_proj", linear(width, values, false));
  a_proj_ = register_module("a_proj", linear(width, value_heads_, false));
  b_proj_ = register_module("b_proj", linear(width, value_heads_, false));
  // decay rates log-uniform below 16, step sizes log-uniform in [1e-3, 0.1], through softplus^-1
  A_log_ = register_parameter("A_log", (torch::rand({value_heads_}) * 16).clamp_min(1e-4).log());
  const Tensor dt =
      (torch::rand({value_heads_}) * (std::log(0.1) - std::log(1e-3)) + std::log(1e-3)).exp().clamp_min(1e-4);
  dt_bias_ = register_parameter("dt_bias", dt + (-(-dt).expm1()).log());
  if (o.use_gate) g_proj_ = register_module("g_proj", linear(width, values, false));
  o_norm_ = register_module("o_norm", std::make_shared<RmsNorm>(value, o.norm_eps));
  o_proj_ = register_module("o_proj", linear(values, width, false));
  set_up(value_heads_, o.head_dim, value, queries, o.use_short_conv ? o.conv_size : 0, true);
}

GatedDeltaNet::Projected GatedDeltaNet::project(const Tensor& x, Memory& memory, const Columns& columns) {
  const auto activated = [&](const Tensor& y) {
    return has_conv() ? y : torch::silu(y);
  };  // the convolution has its own
  const auto key_heads = [&](Linear& projection, const char* name) {
    const Tensor y = split_heads(activated(convolved(projection(x), name, memory, columns)), options_.heads);
    const Tensor unit = ops::l2_norm(y, options_.l2_eps);
    const int64_t readers = value_heads_ / options_.heads;
    return readers == 1 ? unit : unit.repeat_interleave(readers, 2);  // one repetition would be a copy
  };
  Projected p;
  p.q = key_heads(q_proj_, "q");
  p.k = key_heads(k_proj_, "k");
  p.v = split_heads(activated(convolved(v_proj_(x), "v", memory, columns)), value_heads_);
  p.beta = torch::sigmoid(ops::widened(b_proj_(x)));
  if (options_.allow_neg_eigval) p.beta = 2 * p.beta;
  p.log_decay = -ops::widened(A_log_).exp() * torch::softplus(ops::widened(a_proj_(x)) + ops::widened(dt_bias_));
  return p;
}

Tensor GatedDeltaNet::finish(const Tensor& o, const Tensor& x) {
  const Tensor y = options_.use_gate ? o_norm_->gated(o, split_heads(g_proj_(x), value_heads_)) : o_norm_->forward(o);
  return o_proj_(merge_heads(y).to(x.scalar_type()));
}

}  // namespace seqloom
