#include "mixers/lawcat.h"

#include "mixers/heads.h"
#include "mixers/token_positions.h"
#include "ops/gated_linear_attention.h"
#include "ops/precision.h"

namespace seqloom {
namespace {

/// A convolution that at first passes its input on, so that training starts from the teacher's queries and keys.
std::shared_ptr<ShortConv> identity_conv(int64_t channels, int64_t kernel) {
  auto conv = std::make_shared<ShortConv>(channels, kernel, /*bias=*/false, /*silu=*/false);
  const torch::NoGradGuard no_grad;
  Tensor weight = conv->named_parameters()["weight"];
  weight.zero_().select(-1, kernel - 1).fill_(1);
  return conv;
}

}  // namespace

SEQLOOM_REGISTER_MIXER("lawcat", Lawcat);

HedgehogMap::HedgehogMap(int64_t heads, int64_t width) {
  weight_ = register_parameter("weight", torch::eye(width).repeat({heads, 1, 1}));
}

Tensor HedgehogMap::forward(const Tensor& x) {
  const Tensor h = torch::einsum("bthd,hde->bthe", {x, weight_.to(x.scalar_type())});
  return torch::cat({torch::softmax(h, -1), torch::softmax(-h, -1)}, -1);
}

Lawcat::Lawcat(int64_t width, const Options& o)
    : ScannableMixer(width),
      options_(o),
      kv_heads_(o.kv_heads.value_or(o.heads)),
      head_width_(head_width(width, 1, o.heads, "model")),
      feature_width_(o.feature_map == "hedgehog" ? 2 * head_width_ : head_width_) {
  if (o.heads % kv_heads_ != 0) misuse("kv_heads = {} does not divide heads = {}", kv_heads_, o.heads);
  if (o.rope) frequencies_ = rope_frequencies(head_width_, o.rope_options);
  const int64_t queries = o.heads * head_width_, keys = kv_heads_ * head_width_;
  q_proj_ = register_module("q_proj", linear(width, queries, false));
  k_proj_ = register_module("k_proj", linear(width, keys, false));
  v_proj_ = register_module("v_proj", linear(width, keys, false));
  q_conv_ = register_module("q_conv", identity_conv(queries, o.conv_size));
  k_conv_ = register_module("k_conv", identity_conv(keys, o.conv_size));
  if (o.feature_map == "hedgehog") {
    feature_q_ = register_module("feature_q", std::make_shared<HedgehogMap>(o.heads, head_width_));
    feature_k_ = register_module("feature_k", std::make_shared<HedgehogMap>(kv_heads_, head_width_));
  }
  const int64_t gates = o.gate == "vector" ? kv_heads_ * feature_width_ : kv_heads_;
  gk_proj_ = register_module("gk_proj", torch::nn::Sequential(linear(width, o.gate_low_rank_dim, false),
                                                              linear(o.gate_low_rank_dim, gates, true)));
  o_proj_ = register_module("o_proj", linear(queries, width, false));
}

Memory Lawcat::empty_memory(int64_t batch) const {
  const int64_t heads = options_.heads, window = options_.conv_size - 1;
  Memory memory;
  memory["S"] = torch::zeros({batch, heads, feature_width_, head_width_}, state_options());
  memory["z"] = torch::zeros({batch, heads, feature_width_}, state_options());
  memory["q_conv"] = torch::zeros({batch, window, heads * head_width_}, state_options());
  memory["k_conv"] = torch::zeros({batch, window, kv_heads_ * head_width_}, state_options());
  return memory;
}

Tensor Lawcat::features(const Tensor& projected, ShortConv& conv, Tensor& window, HedgehogMap* map,
                        const Tensor& angles, const Columns& columns) {
  Tensor last = window.transpose(1, 2);  // the convolution keeps channels first, the memory tokens
  Tensor y = ops::widened(split_heads(conv.forward(projected, last, columns), projected.size(-1) / head_width_));
  window = last.transpose(1, 2).contiguous();
  if (angles.defined()) y = rotate(y.transpose(1, 2), angles, options_.rope_options.layout).transpose(1, 2);
  if (map != nullptr) return map->forward(y);
  if (options_.feature_map == "softmax") return torch::softmax(y, -1);
  return options_.feature_map == "elu1" ? torch::elu(y) + 1 : torch::relu(y);
}

Tensor Lawcat::per_query_head(const Tensor& x) const {
  return kv_heads_ == options_.heads ? x : x.repeat_interleave(options_.heads / kv_heads_, 2);
}

Lawcat::Projected Lawcat::project(const Tensor& x, Memory& memory, Pass& pass) {
  const Tensor keep = pass.layout.keep(x.size(0), x.size(1));
  const Columns columns(pass.layout, x);
  Tensor angles;
  if (options_.rope) {
    angles = rope_angles(token_positions(x, pass, memory), frequencies_);
    if (angles.dim() == 3) angles = angles.unsqueeze(1);  // [B, 1, T, K/2]: the same for every head
  }
  Projected p;
  p.q = features(q_proj_(x), *q_conv_, memory["q_conv"], feature_q_.get(), angles, columns);
  Tensor k = features(k_proj_(x), *k_conv_, memory["k_conv"], feature_k_.get(), angles, columns);
  Tensor gate = torch::log_sigmoid(ops::widened(gk_proj_->forward(x))) / options_.gate_logit_normalizer;
  if (keep.defined()) {  // padding writes nothing and forgets nothing
    k = k * keep.unsqueeze(-1).unsqueeze(-1);
    gate = gate * keep.unsqueeze(-1);
  }
  p.k = per_query_head(k);
  p.v = per_query_head(split_heads(v_proj_(x), kv_heads_));
  p.log_decay = per_query_head(options_.gate == "vector" ? split_heads(gate, kv_heads_) : gate);
  return p;
}

Tensor Lawcat::attend(const Projected& p, Memory& memory, const Layout& layout) const {
  const auto& [q, k, v, log_decay] = p;
  if (options_.normalize) {
    const auto [o, S, z] = ops::normalized_gated_linear_attention(q, k, v, log_decay, /*scale=*/1, options_.eps,
                                                                  memory["S"], memory["z"], layout.cu_seqlens());
    memory["S"] = S;
    memory["z"] = z;
    return o;
  }
  // z is the state of a value that is always one
  const Tensor values = torch::constant_pad_nd(ops::widened(v), {0, 1}, 1);
  const Tensor start = torch::cat({memory["S"], memory["z"].unsqueeze(-1)}, -1);
  const auto [o, state] = ops::gated_linear_attention(q, k, values, log_decay, /*scale=*/1, start, layout.cu_seqlens());
  memory["S"] = state.narrow(-1, 0, head_width_);
  memory["z"] = state.select(-1, head_width_);
  return o.narrow(-1, 0, head_width_).to(v.scalar_type());
}

Tensor Lawcat::read(const Tensor& x, Memory& memory, Pass& pass) {
  const Tensor o = attend(project(x, memory, pass), memory, pass.layout);
  if (pass.watch) pass.watch("attn", o);
  return o_proj_(merge_heads(o));
}

std::optional<MatrixForm> Lawcat::matrix(const Tensor& x) {
  Memory memory = empty_memory(x.size(0));
  Pass pass;
  const auto [q, k, v, log_decay] = project(x, memory, pass);
  Tensor weights = ops::gated_linear_attention_matrix(q, k, log_decay, /*scale=*/1);
  if (options_.normalize) weights = weights / (weights.sum(-1, true) + options_.eps);
  return MatrixForm{weights, ops::widened(v).transpose(1, 2),
                    [this, x](const Tensor& o) { return o_proj_(merge_heads(o.transpose(1, 2)).to(x.scalar_type())); }};
}

Memory Lawcat::identity_element(int64_t batch) const {
  Memory element;
  const int64_t gates = options_.gate == "vector" ? feature_width_ : 1;
  element["log_decay"] = torch::zeros({batch, options_.heads, gates}, state_options());
  element["S"] = torch::zeros({batch, options_.heads, feature_width_, head_width_}, state_options());
  element["z"] = torch::zeros({batch, options_.heads, feature_width_}, state_options());
  return element;
}

Memory Lawcat::element(const Tensor& x, Memory& memory, Pass& pass) {
  const Projected p = project(x, memory, pass);
  Memory sums = empty_memory(x.size(0)), element;
  attend(p, sums, pass.layout);
  const Tensor log_decay = p.log_decay.sum(1);
  element["log_decay"] = options_.gate == "vector" ? log_decay : log_decay.unsqueeze(-1);
  element["S"] = sums["S"];
  element["z"] = sums["z"];
  return element;
}

Memory Lawcat::combine_elements(const Memory& left, const Memory& right) const {
  Memory both;
  const Tensor decay = right.at("log_decay").exp();
  both["log_decay"] = left.at("log_decay") + right.at("log_decay");
  both["S"] = decay.unsqueeze(-1) * left.at("S") + right.at("S");
  both["z"] = decay * left.at("z") + right.at("z");
  return both;
}

void Lawcat::apply_element(const Memory& element, Memory& memory) {
  const Tensor decay = element.at("log_decay").exp();
  memory["S"] = decay.unsqueeze(-1) * memory["S"] + element.at("S");
  memory["z"] = decay * memory["z"] + element.at("z");
}

}  // namespace seqloom
