#include "mixers/linear_attention.h"

#include "mixers/heads.h"
#include "mixers/whole_sequences.h"
#include "ops/gated_linear_attention.h"
#include "ops/precision.h"

namespace seqloom {

SEQLOOM_REGISTER_MIXER("linear_attention", LinearAttention);

LinearAttention::LinearAttention(int64_t width, const Options& options)
    : ScannableMixer(width),
      options_(options),
      key_width_(head_width(width, options.expand_k, options.heads, "key")),
      value_width_(head_width(width, options.expand_v, options.heads, "value")) {
  const int64_t heads = options.heads;
  q_proj_ = register_module("q_proj", linear(width, heads * key_width_, options.bias));
  k_proj_ = register_module("k_proj", linear(width, heads * key_width_, options.bias));
  v_proj_ = register_module("v_proj", linear(width, heads * value_width_, options.bias));
  o_proj_ = register_module("o_proj", linear(heads * value_width_, width, options.bias));
  if (options.output_norm == "rmsnorm") {
    norm_ = register_module("norm", std::make_shared<RmsNorm>(value_width_, options.norm_eps));
  }
}

Memory LinearAttention::empty_memory(int64_t batch) const {
  Memory memory;
  memory["S"] = torch::zeros({batch, options_.heads, key_width_, value_width_}, state_options());
  memory["z"] = torch::zeros({batch, options_.heads, key_width_}, state_options());
  return memory;
}

Tensor LinearAttention::feature_map(const Tensor& x) const {
  if (options_.feature_map == "elu1") return torch::elu(x) + 1;
  if (options_.feature_map == "relu") return torch::relu(x);
  return x;
}

LinearAttention::Projected LinearAttention::project(const Tensor& x, const Layout& layout) {
  Projected p;
  p.q = feature_map(split_heads(q_proj_(x), options_.heads));
  p.k = feature_map(split_heads(k_proj_(x), options_.heads));
  p.v = split_heads(v_proj_(x), options_.heads);
  const Tensor keep = layout.keep(x.size(0), x.size(1));
  if (keep.defined()) p.k = p.k * keep.unsqueeze(-1).unsqueeze(-1);  // padding adds nothing to S and z
  return p;
}

Tensor LinearAttention::finish(const Tensor& o) {
  return o_proj_(merge_heads(norm_ ? norm_->forward(o) : o));
}

Tensor LinearAttention::read(const Tensor& x, Memory& memory, Pass& pass) {
  const auto [q, k, v] = project(x, pass.layout);
  if (!options_.normalize) {
    const auto [o, S] = ops::gated_linear_attention(q, k, v, {}, options_.scale, pass.layout.start(memory["S"]),
                                                    pass.layout.cu_seqlens());
    memory["S"] = S;
    memory["z"] = memory["z"] + sequence_sums(ops::widened(k), pass.layout);
    return finish(o);
  }
  const auto [o, S, z] =
      ops::normalized_gated_linear_attention(q, k, v, {}, options_.scale, options_.eps, pass.layout.start(memory["S"]),
                                             pass.layout.start(memory["z"]), pass.layout.cu_seqlens());
  memory["S"] = S.contiguous();  // parts of one tensor: a memory holds no more than its own
  memory["z"] = z.contiguous();
  return finish(o);
}

Tensor LinearAttention::mix(const Tensor& x, Pass& pass) {
  if (options_.causal) return ScannableMixer::mix(x, pass);
  const auto [q, k, v] = project(x, pass.layout);
  const Tensor queries = ops::widened(q) * options_.scale;
  Tensor o = read_by_sequence(queries, sequence_products(ops::widened(k), ops::widened(v), pass.layout), pass.layout);
  if (options_.normalize) {
    const Tensor z = sequence_sums(ops::widened(k), pass.layout).unsqueeze(-1);
    o = o / (read_by_sequence(queries, z, pass.layout) + options_.eps);
  }
  return finish(o.to(x.scalar_type()));
}

std::optional<MatrixForm> LinearAttention::matrix(const Tensor& x) {
  const auto [q, k, v] = project(x, Layout());
  Tensor weights = options_.causal
                       ? ops::gated_linear_attention_matrix(q, k, {}, options_.scale)
                       : torch::einsum("bihk,bjhk->bhij", {ops::widened(q), ops::widened(k)}) * options_.scale;
  if (options_.normalize) weights = weights / (weights.sum(-1, true) + options_.eps);
  return MatrixForm{weights, v.transpose(1, 2), [this](const Tensor& o) { return finish(o.transpose(1, 2)); }};
}

Memory LinearAttention::element(const Tensor& x, Memory& memory, Pass& pass) {
  const auto [q, k, v] = project(x, Layout());
  Memory sums;
  sums["S"] = torch::einsum("bthk,bthv->bhkv", {ops::widened(k), ops::widened(v)});
  sums["z"] = ops::widened(k).sum(1);
  return sums;
}

Memory LinearAttention::combine_elements(const Memory& left, const Memory& right) const {
  Memory both;
  both["S"] = left.at("S") + right.at("S");
  both["z"] = left.at("z") + right.at("z");
  return both;
}

void LinearAttention::apply_element(const Memory& element, Memory& memory) {
  memory["S"] = memory["S"] + element.at("S");
  memory["z"] = memory["z"] + element.at("z");
}

}  // namespace seqloom
