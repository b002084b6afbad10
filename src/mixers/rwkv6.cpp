#include "mixers/rwkv6.h"

#include <cmath>

#include "mixers/heads.h"
#include "ops/precision.h"
#include "ops/rwkv.h"

namespace seqloom {

SEQLOOM_REGISTER_MIXER("rwkv6", Rwkv6);

Rwkv6::Rwkv6(int64_t width, const Options& o)
    : ScannableMixer(width),
      options_(o),
      key_width_(head_width(width, o.expand_k, o.heads, "key")),
      value_width_(head_width(width, o.expand_v, o.heads, "value")) {
  const int64_t keys = o.heads * key_width_, values = o.heads * value_width_, rank = o.proj_low_rank_dim;
  // parameters under the names of flash-linear-attention: x_proj.0.mu, r_proj.linear.weight, ...
  const auto inside = [](std::shared_ptr<torch::nn::Module> parent, const char* name, auto child) {
    return parent->register_module(name, child);
  };
  const auto group = [&](const char* name) { return register_module(name, std::make_shared<torch::nn::Module>()); };
  const auto x_proj = group("x_proj"), first = inside(x_proj, "0", std::make_shared<torch::nn::Module>());
  mix_down_ = inside(first, "linear", linear(width, 5 * rank, false));
  mu_ = first->register_parameter("mu", shift_ramp(width));
  mix_up_ = inside(x_proj, "2", float_linear(5 * rank, width, false));
  x_bias_ = register_parameter("x_bias", shift_ramp(width).repeat({5, 1}));
  r_proj_ = inside(group("r_proj"), "linear", linear(width, keys, false));
  w_proj_ = inside(group("w_proj"), "linear",
                   std::make_shared<LowRank>(width, o.gate_low_rank_dim, keys, LowRank::Activation::kTanh, true));
  k_proj_ = inside(group("k_proj"), "linear", linear(width, keys, false));
  v_proj_ = inside(group("v_proj"), "linear", linear(width, values, false));
  g_proj_ = inside(group("g_proj"), "linear", linear(width, values, false));
  bonus_ = register_parameter("bonus", torch::empty({o.heads, key_width_}).uniform_(-0.5, 0.5));
  g_norm_ = register_module("g_norm", std::make_shared<HeadNorm>(values, o.norm_eps));
  o_proj_ = register_module("o_proj", linear(values, width, false));
  const torch::NoGradGuard no_grad;
  w_proj_->bias().copy_(-1 - 5 * shift_ramp(keys));  // channels that forget e^{-6} to e^{-1} nats a token
}

Memory Rwkv6::empty_memory(int64_t batch) const {
  Memory memory;
  memory["S"] = torch::zeros({batch, options_.heads, key_width_, value_width_}, state_options());
  memory["shift"] = torch::zeros({batch, width()}, state_options());
  return memory;
}

Rwkv6::Projected Rwkv6::project(const Tensor& x, Memory& memory, const Layout& layout) {
  const Tensor keep = layout.keep(x.size(0), x.size(1));
  const Tensor change = previous_tokens(x, memory["shift"], layout) - x;
  const auto ranks = split_heads(torch::tanh(mix_down_(torch::addcmul(x, change, mu_))), 5);  // [B, T, 5, R]
  const Tensor up = mix_up_->weight.view({width(), 5, options_.proj_low_rank_dim});
  const auto mixes = (torch::einsum("btnr,dnr->btnd", {ranks, up}) + x_bias_).unbind(2);  // for r, w, k, v, g
  const auto mixed = [&](size_t n) { return torch::addcmul(x, change, mixes[n]); };
  Projected p;
  p.r = split_heads(r_proj_(mixed(0)), options_.heads);
  p.w = split_heads(-ops::widened(w_proj_->forward(mixed(1))).exp(), options_.heads);
  p.k = split_heads(k_proj_(mixed(2)), options_.heads);
  p.v = split_heads(v_proj_(mixed(3)), options_.heads);
  p.gate = gate_activation(options_.gate_fn, g_proj_(mixed(4)));
  if (keep.defined()) {  // padding writes nothing and forgets nothing
    const Tensor real = keep.unsqueeze(-1).unsqueeze(-1);
    p.w = p.w.masked_fill(real.logical_not(), 0);
    p.k = p.k * real;
  }
  return p;
}

Tensor Rwkv6::finish(const Tensor& o, const Tensor& gate) {
  return o_proj_(g_norm_->forward(o).to(gate.scalar_type()) * gate);
}

Tensor Rwkv6::read(const Tensor& x, Memory& memory, Pass& pass) {
  const Projected p = project(x, memory, pass.layout);
  const auto [o, S] = ops::rwkv6(p.r, p.k, p.v, p.w, bonus_, memory["S"], pass.layout.cu_seqlens());
  memory["S"] = S;
  return finish(o, p.gate);
}

std::optional<MatrixForm> Rwkv6::matrix(const Tensor& x) {
  Memory memory = empty_memory(x.size(0));
  const Projected p = project(x, memory, Layout());
  // With the unit vectors for values, output i holds what each value contributes to it.
  const int64_t tokens = x.size(1);
  const Tensor units = torch::eye(tokens, p.w.options())
                           .view({1, tokens, 1, tokens})
                           .expand({x.size(0), tokens, options_.heads, tokens});
  const Tensor weights = std::get<0>(ops::rwkv6(p.r, p.k, units, p.w, bonus_, {}));
  return MatrixForm{weights.transpose(1, 2), ops::widened(p.v).transpose(1, 2),
                    [this, p](const Tensor& o) { return finish(o.transpose(1, 2), p.gate); }};
}

Memory Rwkv6::identity_element(int64_t batch) const {
  Memory element;
  element["log_decay"] = torch::zeros({batch, options_.heads, key_width_}, state_options());
  element["S"] = torch::zeros({batch, options_.heads, key_width_, value_width_}, state_options());
  return element;
}

Memory Rwkv6::element(const Tensor& x, Memory& memory, Pass& pass) {
  const Projected p = project(x, memory, Layout());
  Memory element;
  element["log_decay"] = p.w.sum(1);
  element["S"] = std::get<1>(ops::rwkv6(p.r, p.k, p.v, p.w, bonus_, {}));
  return element;
}

Memory Rwkv6::combine_elements(const Memory& left, const Memory& right) const {
  Memory both;
  both["log_decay"] = left.at("log_decay") + right.at("log_decay");
  both["S"] = right.at("log_decay").exp().unsqueeze(-1) * left.at("S") + right.at("S");
  return both;
}

void Rwkv6::apply_element(const Memory& element, Memory& memory) {
  memory["S"] = element.at("log_decay").exp().unsqueeze(-1) * memory["S"] + element.at("S");
}

}  // namespace seqloom
