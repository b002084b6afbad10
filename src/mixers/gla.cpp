#include "mixers/gla.h"

#include <cmath>

#include "mixers/heads.h"
#include "mixers/output_gate.h"
#include "ops/gated_linear_attention.h"
#include "ops/precision.h"

namespace seqloom {

SEQLOOM_REGISTER_MIXER("gla", Gla);

Gla::Gla(int64_t width, const Options& o)
    : ScannableMixer(width),
      options_(o),
      kv_heads_(o.kv_heads.value_or(o.heads)),
      key_width_(head_width(width, o.expand_k, o.heads, "key")),
      value_width_(head_width(width, o.expand_v, o.heads, "value")) {
  if (o.heads % kv_heads_ != 0) misuse("kv_heads = {} does not divide heads = {}", kv_heads_, o.heads);
  const int64_t queries = o.heads * key_width_, keys = kv_heads_ * key_width_, values = kv_heads_ * value_width_;
  q_proj_ = register_module("q_proj", linear(width, queries, false));
  k_proj_ = register_module("k_proj", linear(width, keys, false));
  v_proj_ = register_module("v_proj", linear(width, values, false));
  gk_proj_ = register_module("gk_proj", torch::nn::Sequential(linear(width, o.gate_low_rank_dim, false),
                                                              linear(o.gate_low_rank_dim, keys, true)));
  if (o.use_short_conv) {
    q_conv1d_ = register_module("q_conv1d", std::make_shared<ShortConv>(queries, o.conv_size, false, true));
    k_conv1d_ = register_module("k_conv1d", std::make_shared<ShortConv>(keys, o.conv_size, false, true));
    v_conv1d_ = register_module("v_conv1d", std::make_shared<ShortConv>(values, o.conv_size, false, true));
  }
  if (o.use_output_gate) g_proj_ = register_module("g_proj", linear(width, o.heads * value_width_, false));
  g_norm_ = register_module("g_norm", std::make_shared<RmsNorm>(value_width_, o.norm_eps));
  o_proj_ = register_module("o_proj", linear(o.heads * value_width_, width, false));
}

double Gla::scale() const {
  return 1 / std::sqrt(static_cast<double>(key_width_));
}

std::vector<std::string> Gla::context() const {
  if (!options_.use_short_conv) return {};
  return {"q_conv", "k_conv", "v_conv"};
}

Memory Gla::empty_memory(int64_t batch) const {
  Memory memory;
  memory["S"] = torch::zeros({batch, options_.heads, key_width_, value_width_}, state_options());
  if (options_.use_short_conv) {
    memory["q_conv"] = q_conv1d_->empty_window(batch, state_options());
    memory["k_conv"] = k_conv1d_->empty_window(batch, state_options());
    memory["v_conv"] = v_conv1d_->empty_window(batch, state_options());
  }
  return memory;
}

Gla::Projected Gla::project(const Tensor& x, Memory& memory, const Layout& layout) {
  const Tensor keep = layout.keep(x.size(0), x.size(1));
  const Columns columns(layout, x);
  const auto convolved = [&](Linear& projection, ShortConv* conv, const char* window) {
    const Tensor y = projection(x);
    return conv == nullptr ? y : conv->forward(y, memory[window], columns);
  };
  const auto per_query_head = [&](const Tensor& t) {
    const Tensor split = split_heads(t, kv_heads_);
    return kv_heads_ == options_.heads ? split : split.repeat_interleave(options_.heads / kv_heads_, 2);
  };
  Projected p;
  p.q = split_heads(convolved(q_proj_, q_conv1d_.get(), "q_conv"), options_.heads);
  Tensor k = convolved(k_proj_, k_conv1d_.get(), "k_conv");
  p.v = per_query_head(convolved(v_proj_, v_conv1d_.get(), "v_conv"));
  Tensor gate = torch::log_sigmoid(ops::widened(gk_proj_->forward(x))) / options_.gate_logit_normalizer;
  if (options_.clamp_min) gate = gate.clamp_min(*options_.clamp_min);
  if (keep.defined()) {  // padding writes nothing and forgets nothing
    k = k * keep.unsqueeze(-1);
    gate = gate * keep.unsqueeze(-1);
  }
  p.k = per_query_head(k);
  p.log_decay = per_query_head(gate);
  return p;
}

Tensor Gla::finish(const Tensor& o, const Tensor& x) {
  const Tensor y = options_.use_output_gate
                       ? gated_norm(*g_norm_, o, options_.gate_fn, split_heads(g_proj_(x), options_.heads))
                       : g_norm_->forward(o);
  return o_proj_(merge_heads(y).to(x.scalar_type()));
}

Tensor Gla::read(const Tensor& x, Memory& memory, Pass& pass) {
  const auto [q, k, v, log_decay] = project(x, memory, pass.layout);
  const auto [o, S] = ops::gated_linear_attention(q, k, v, log_decay, scale(), pass.layout.start(memory["S"]),
                                                  pass.layout.cu_seqlens());
  memory["S"] = S;
  return finish(o, x);
}

std::optional<MatrixForm> Gla::matrix(const Tensor& x) {
  Memory memory = empty_memory(x.size(0));
  const auto [q, k, v, log_decay] = project(x, memory, Layout());
  return MatrixForm{ops::gated_linear_attention_matrix(q, k, log_decay, scale()), v.transpose(1, 2),
                    [this, x](const Tensor& o) { return finish(o.transpose(1, 2), x); }};
}

Memory Gla::identity_element(int64_t batch) const {
  Memory element;
  element["log_decay"] = torch::zeros({batch, options_.heads, key_width_}, state_options());
  element["S"] = torch::zeros({batch, options_.heads, key_width_, value_width_}, state_options());
  return element;
}

Memory Gla::element(const Tensor& x, Memory& memory, Pass& pass) {
  const auto [q, k, v, log_decay] = project(x, memory, Layout());
  Memory element;
  element["log_decay"] = log_decay.sum(1);
  element["S"] = std::get<1>(ops::gated_linear_attention(q, k, v, log_decay, scale(), {}));
  return element;
}

Memory Gla::combine_elements(const Memory& left, const Memory& right) const {
  Memory both;
  both["log_decay"] = left.at("log_decay") + right.at("log_decay");
  both["S"] = right.at("log_decay").exp().unsqueeze(-1) * left.at("S") + right.at("S");
  return both;
}

void Gla::apply_element(const Memory& element, Memory& memory) {
  memory["S"] = element.at("log_decay").exp().unsqueeze(-1) * memory["S"] + element.at("S");
}

}  // namespace seqloom
