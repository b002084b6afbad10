#include "mixers/retnet.h"

#include <cmath>

#include "mixers/heads.h"
#include "mixers/token_positions.h"
#include "ops/gated_linear_attention.h"
#include "ops/precision.h"

namespace seqloom {

SEQLOOM_REGISTER_MIXER("retnet", RetNet);

RetNet::RetNet(int64_t width, const Options& o)
    : ScannableMixer(width),
      options_(o),
      key_width_(head_width(width, o.expand_k, o.heads, "key")),
      value_width_(head_width(width, o.expand_v, o.heads, "value")),
      frequencies_(rope_frequencies(key_width_, o.rope)) {
  q_proj_ = register_module("q_proj", linear(width, o.heads * key_width_, false));
  k_proj_ = register_module("k_proj", linear(width, o.heads * key_width_, false));
  v_proj_ = register_module("v_proj", linear(width, o.heads * value_width_, false));
  g_proj_ = register_module("g_proj", linear(width, o.heads * value_width_, false));
  g_norm_ = register_module("g_norm", std::make_shared<RmsNorm>(value_width_, o.norm_eps));
  o_proj_ = register_module("o_proj", linear(o.heads * value_width_, width, false));
}

Config RetNet::from_case(Config config, const std::map<std::string, std::vector<int64_t>>&) {
  if (config.contains("rope_interleaved")) {
    config["rope_layout"] = config["rope_interleaved"].get<bool>() ? "interleaved" : "half";
    config.erase("rope_interleaved");
  }
  return config;
}

double RetNet::scale() const {
  return 1 / std::sqrt(static_cast<double>(key_width_));
}

Tensor RetNet::head_decays() const {
  const Tensor head = torch::arange(options_.heads, torch::kFloat64);
  return (-torch::exp2(-5 - head)).log1p().to(state_options());
}

Memory RetNet::empty_memory(int64_t batch) const {
  Memory memory;
  memory["S"] = torch::zeros({batch, options_.heads, key_width_, value_width_}, state_options());
  return memory;
}

RetNet::Projected RetNet::project(const Tensor& x, const Tensor& positions, const Layout& layout) {
  Tensor angles = rope_angles(positions, frequencies_);
  if (angles.dim() == 3) angles = angles.unsqueeze(1);  // [B, 1, T, K/2]: the same for every head
  const auto turned = [&](Linear& projection) {
    const Tensor by_head = split_heads(projection(x), options_.heads).transpose(1, 2);
    return rotate(by_head, angles, options_.rope.layout).transpose(1, 2);
  };
  Projected p;
  p.q = turned(q_proj_);
  p.k = turned(k_proj_);
  p.v = split_heads(v_proj_(x), options_.heads);
  p.log_decay = head_decays().expand({x.size(0), x.size(1), options_.heads});
  const Tensor keep = layout.keep(x.size(0), x.size(1));
  if (keep.defined()) {  // padding writes nothing and forgets nothing
    p.k = p.k * keep.unsqueeze(-1).unsqueeze(-1);
    p.log_decay = p.log_decay * keep.unsqueeze(-1);
  }
  return p;
}

Tensor RetNet::finish(const Tensor& o, const Tensor& x) {
  const Tensor gate = split_heads(g_proj_(x), options_.heads);
  const Tensor y = gated_norm(*g_norm_, o, options_.gate_fn, gate);
  return o_proj_(merge_heads(y).to(x.scalar_type()));
}

Tensor RetNet::read(const Tensor& x, Memory& memory, Pass& pass) {
  const auto [q, k, v, log_decay] = project(x, token_positions(x, pass, memory), pass.layout);
  const auto [o, S] = ops::gated_linear_attention(q, k, v, log_decay, scale(), pass.layout.start(memory["S"]),
                                                  pass.layout.cu_seqlens());
  memory["S"] = S;
  return finish(o, x);
}

std::optional<MatrixForm> RetNet::matrix(const Tensor& x) {
  const auto [q, k, v, log_decay] = project(x, token_positions(x, Pass()), Layout());
  return MatrixForm{ops::gated_linear_attention_matrix(q, k, log_decay, scale()), v.transpose(1, 2),
                    [this, x](const Tensor& o) { return finish(o.transpose(1, 2), x); }};
}

Memory RetNet::element(const Tensor& x, Memory&, Pass& pass) {
  const auto [q, k, v, log_decay] = project(x, token_positions(x, Pass()), Layout());
  Memory element;
  element["S"] = std::get<1>(ops::gated_linear_attention(q, k, v, log_decay, scale(), {}));
  return element;
}

Tensor RetNet::appended(const Tensor& state, const Tensor& before, const Memory& element) const {
  const Tensor decay = (head_decays() * static_cast<double>(element.tokens)).exp().view({-1, 1, 1});
  const Tensor angles = rope_angles(before, frequencies_).to(state.device()).unsqueeze(1).unsqueeze(1);
  const Tensor turned = rotate(element.at("S").transpose(-1, -2), angles, options_.rope.layout).transpose(-1, -2);
  return decay * state + turned;
}

Memory RetNet::combine_elements(const Memory& left, const Memory& right) const {
  Memory both;
  both["S"] = appended(left.at("S"), torch::tensor({left.tokens}), right);
  return both;
}

void RetNet::apply_element(const Memory& element, Memory& memory) {
  memory["S"] = appended(memory["S"], memory.counts(memory["S"]), element);
}

}  // namespace seqloom
