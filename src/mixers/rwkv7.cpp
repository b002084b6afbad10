#include "mixers/rwkv7.h"

#include <fmt/ostream.h>

#include <cmath>

#include "mixers/heads.h"
#include "ops/precision.h"
#include "ops/rwkv.h"

namespace seqloom {

SEQLOOM_REGISTER_MIXER("rwkv7", Rwkv7);

Rwkv7::Rwkv7(int64_t width, const Options& o)
    : ScannableMixer(width),
      options_(o),
      heads_(o.heads.value_or(std::max<int64_t>(1, width / 64))),
      head_width_(head_width(width, 1, heads_, "model")) {
  for (const auto& [name, mix] : {std::pair<const char*, Tensor*>{"x_r", &x_r_},
                                  {"x_w", &x_w_},
                                  {"x_k", &x_k_},
                                  {"x_v", &x_v_},
                                  {"x_a", &x_a_},
                                  {"x_g", &x_g_}}) {
    *mix = register_parameter(name, shift_ramp(width));
  }
  k_k_ = register_parameter("k_k", torch::full({width}, 0.85));
  k_a_ = register_parameter("k_a", torch::ones({width}));
  r_k_ = register_parameter("r_k", torch::full({heads_, head_width_}, -0.04));
  r_proj_ = register_module("r_proj", linear(width, width, false));
  k_proj_ = register_module("k_proj", linear(width, width, false));
  v_proj_ = register_module("v_proj", linear(width, width, false));
  o_proj_ = register_module("o_proj", linear(width, width, false));
  const auto usual = std::max<int64_t>(32, std::llround(2.5 * std::sqrt(static_cast<double>(width)) / 32) * 32);
  const auto low_rank = [&](const std::optional<int64_t>& rank, LowRank::Activation activation, bool bias) {
    return std::make_shared<LowRank>(width, rank.value_or(usual), width, activation, bias);
  };
  w_lora_ = register_module("w_lora", low_rank(o.decay_low_rank_dim, LowRank::Activation::kTanh, true));
  a_lora_ = register_module("a_lora", low_rank(o.a_low_rank_dim, LowRank::Activation::kNone, true));
  if (o.layer > 0) v_lora_ = register_module("v_lora", low_rank(o.v_low_rank_dim, LowRank::Activation::kNone, true));
  g_lora_ = register_module("g_lora", low_rank(o.gate_low_rank_dim, LowRank::Activation::kSigmoid, false));
  g_norm_ = register_module("g_norm", std::make_shared<HeadNorm>(width, static_cast<double>(head_width_) * o.norm_eps));
  const torch::NoGradGuard no_grad;
  w_lora_->bias().copy_(-6 * shift_ramp(width));  // channels from slow to quick decay
}

std::vector<std::string> Rwkv7::takes() const {
  if (options_.layer == 0) return {};
  return {"v_first"};
}

Memory Rwkv7::empty_memory(int64_t batch) const {
  Memory memory;
  memory["S"] = torch::zeros({batch, heads_, head_width_, head_width_}, state_options());
  memory["shift"] = torch::zeros({batch, width()}, state_options());
  return memory;
}

Tensor Rwkv7::values(const Tensor& mixed, Pass& pass) {
  const Tensor v = v_proj_(mixed);
  if (options_.layer == 0) {
    pass.values["v_first"] = v;
    return v;
  }
  const auto first = pass.values.find("v_first");
  if (first == pass.values.end() || first->second.sizes() != v.sizes()) {
    misuse("rwkv7 with layer = {} needs the values of a layer = 0 before it, v_first {}; there are {}", options_.layer,
           fmt::streamed(v.sizes()),
           first == pass.values.end() ? "none" : fmt::format("{}", fmt::streamed(first->second.sizes())));
  }
  return torch::lerp(v, first->second, torch::sigmoid(v_lora_->forward(mixed)));
}

Rwkv7::Projected Rwkv7::project(const Tensor& x, Memory& memory, Pass& pass) {
  constexpr double kFastest = -0.6065306597126334;  // -e^{-1/2}: no channel forgets more than 45 % a token
  const Tensor keep = pass.layout.keep(x.size(0), x.size(1));
  const Tensor change = previous_tokens(x, memory["shift"], pass.layout) - x;
  const auto mixed = [&](const Tensor& mix) { return torch::addcmul(x, change, mix); };
  const auto by_head = [&](const Tensor& y) { return split_heads(y, heads_); };

  Projected p;
  p.r = by_head(r_proj_(mixed(x_r_)));
  p.w = by_head(kFastest * torch::sigmoid(ops::widened(w_lora_->forward(mixed(x_w_)))));
  p.v = by_head(values(mixed(x_v_), pass));
  const Tensor xa = mixed(x_a_), k = ops::widened(k_proj_(mixed(x_k_)));
  const Tensor rate = torch::sigmoid(ops::widened(a_lora_->forward(xa)));  // in-context learning rate
  const Tensor removed = by_head(k * ops::widened(k_k_));
  const Tensor unit = removed / removed.norm(2, {-1}, true).clamp_min(1e-12);
  p.k = by_head(torch::addcmul(k, k * (rate - 1), ops::widened(k_a_)));
  p.a = -unit;
  p.b = unit * by_head(rate);
  p.gate = g_lora_->forward(mixed(x_g_));
  if (keep.defined()) {  // padding writes nothing, removes nothing and forgets nothing
    const Tensor real = keep.unsqueeze(-1).unsqueeze(-1);
    p.w = p.w * real;
    p.k = p.k * real;
    p.b = p.b * real;
  }
  return p;
}

Tensor Rwkv7::bonus(const Projected& p) const {
  return (ops::widened(p.r) * p.k * ops::widened(r_k_)).sum(-1, true);
}

Tensor Rwkv7::finish(const Tensor& o, const Projected& p) {
  const Tensor own = merge_heads(bonus(p) * ops::widened(p.v));
  return o_proj_(((g_norm_->forward(o) + own) * p.gate).to(p.gate.scalar_type()));
}

Tensor Rwkv7::read(const Tensor& x, Memory& memory, Pass& pass) {
  const Projected p = project(x, memory, pass);
  const auto [o, S] = ops::rwkv7(p.r, p.w, p.k, p.v, p.a, p.b, memory["S"], pass.layout.cu_seqlens());
  memory["S"] = S;
  return finish(o, p);
}

std::optional<MatrixForm> Rwkv7::matrix(const Tensor& x) {
  if (options_.layer > 0) return std::nullopt;  // needs another layer's values
  Memory memory = empty_memory(x.size(0));
  Pass pass;
  const Projected p = project(x, memory, pass);
  // With the unit vectors for values, output i holds what each value contributes to it.
  const int64_t tokens = x.size(1);
  const Tensor units =
      torch::eye(tokens, p.w.options()).view({1, tokens, 1, tokens}).expand({x.size(0), tokens, heads_, tokens});
  const Tensor weights = std::get<0>(ops::rwkv7(p.r, p.w, p.k, units, p.a, p.b, {}));
  return MatrixForm{weights.transpose(1, 2), ops::widened(p.v).transpose(1, 2),
                    [this, p](const Tensor& o) { return finish(o.transpose(1, 2), p); }};
}

Memory Rwkv7::identity_element(int64_t batch) const {
  Memory element;
  element["P"] =
      torch::eye(head_width_, state_options()).expand({batch, heads_, head_width_, head_width_}).contiguous();
  element["S"] = torch::zeros({batch, heads_, head_width_, head_width_}, state_options());
  return element;
}

Memory Rwkv7::element(const Tensor& x, Memory& memory, Pass& pass) {
  const Projected p = project(x, memory, pass);
  // A state [I | 0] that reads values [0 | v] ends as [P | S].
  const Memory start = identity_element(x.size(0));
  const Tensor v = ops::widened(p.v);
  const Tensor end = std::get<1>(ops::rwkv7(p.r, p.w, p.k, torch::cat({torch::zeros_like(v), v}, -1), p.a, p.b,
                                            torch::cat({start.at("P"), start.at("S")}, -1)));
  Memory element;
  element["P"] = end.narrow(-1, 0, head_width_);
  element["S"] = end.narrow(-1, head_width_, head_width_);
  return element;
}

Memory Rwkv7::combine_elements(const Memory& left, const Memory& right) const {
  Memory both;
  both["P"] = torch::matmul(right.at("P"), left.at("P"));
  both["S"] = torch::matmul(right.at("P"), left.at("S")) + right.at("S");
  return both;
}

void Rwkv7::apply_element(const Memory& element, Memory& memory) {
  memory["S"] = torch::matmul(element.at("P"), memory["S"]) + element.at("S");
}

}  // namespace seqloom
