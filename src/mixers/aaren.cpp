#include "mixers/aaren.h"

#include <cmath>
#include <limits>

#include "mixers/heads.h"
#include "ops/precision.h"
#include "ops/prefix_softmax_scan.h"

namespace seqloom {
namespace {

ops::SoftmaxPartial partial(const Memory& memory) {
  return {memory.at("m"), memory.at("u"), memory.at("w")};
}

void store(const ops::SoftmaxPartial& partial, Memory& memory) {
  memory["m"] = partial.m;
  memory["u"] = partial.u;
  memory["w"] = partial.w;
}

}  // namespace

SEQLOOM_REGISTER_MIXER("aaren", Aaren);

Aaren::Aaren(int64_t width, const Options& options)
    : ScannableMixer(width), heads_(options.heads), head_width_(head_width(width, 1, options.heads, "model")) {
  // not zero: every token would weigh the same, and k_proj would get no gradient
  query_ = register_parameter("query", torch::randn({width}) * 0.5);
  q_proj_ = register_module("q_proj", linear(width, width, options.bias));
  k_proj_ = register_module("k_proj", float_linear(width, width, options.bias));
  v_proj_ = register_module("v_proj", linear(width, width, options.bias));
  out_proj_ = register_module("out_proj", linear(width, width, options.bias));
}

Config Aaren::from_case(Config config, const std::map<std::string, std::vector<int64_t>>&) {
  config.erase("dim");  // the width
  return config;
}

Memory Aaren::empty_memory(int64_t batch) const {
  Memory memory;
  memory["m"] = torch::full({batch, heads_}, -std::numeric_limits<double>::infinity(), state_options());
  memory["u"] = torch::zeros({batch, heads_}, state_options());
  memory["w"] = torch::zeros({batch, heads_, head_width_}, state_options());
  return memory;
}

Tensor Aaren::scores(const Tensor& x) {
  // q is the same for all tokens: W_k^T q, one vector a head, reads x directly and keys are never made.
  const Tensor q =
      ops::widened(q_proj_(query_)).view({heads_, 1, head_width_}) / std::sqrt(static_cast<double>(head_width_));
  const Tensor reader = torch::matmul(q, ops::widened(k_proj_->weight).view({heads_, head_width_, width()})).squeeze(1);
  Tensor bias;
  if (k_proj_->bias.defined()) bias = (q.squeeze(1) * ops::widened(k_proj_->bias).view({heads_, head_width_})).sum(-1);
  return torch::linear(ops::widened(x), reader, bias).transpose(1, 2);
}

Tensor Aaren::values(const Tensor& x) {
  return split_heads(v_proj_(x), heads_).transpose(1, 2);
}

Tensor Aaren::finish(const Tensor& o) {
  return out_proj_(merge_heads(o.transpose(1, 2)));
}

Tensor Aaren::read(const Tensor& x, Memory& memory, Pass& pass) {
  const Tensor keep = pass.layout.keep(x.size(0), x.size(1));
  const auto mask = keep.defined() ? std::make_optional(keep.unsqueeze(1)) : std::nullopt;
  const auto [o, state] =
      ops::prefix_softmax_scan(scores(x), values(x), mask, partial(memory), pass.layout.cu_seqlens());
  store(state, memory);
  return finish(o);
}

std::optional<MatrixForm> Aaren::matrix(const Tensor& x) {
  const Tensor s = scores(x).unsqueeze(-2);  // [B, H, 1, T]
  const Tensor later = torch::ones({x.size(1), x.size(1)}, s.options().dtype(torch::kBool)).triu(1);
  const Tensor weights = torch::softmax(s.masked_fill(later, -std::numeric_limits<double>::infinity()), -1);
  return MatrixForm{weights, values(x), [this](const Tensor& o) { return finish(o); }};
}

Memory Aaren::element(const Tensor& x, Memory& memory, Pass& pass) {
  Memory total;
  store(ops::softmax_total(scores(x), values(x)), total);
  return total;
}

Memory Aaren::combine_elements(const Memory& left, const Memory& right) const {
  Memory both;
  store(ops::merge(partial(left), partial(right)), both);
  return both;
}

void Aaren::apply_element(const Memory& element, Memory& memory) {
  store(ops::merge(partial(memory), partial(element)), memory);
}

}  // namespace seqloom
