#include "mixers/delta_mixer.h"

#include <cmath>

#include "ops/delta_rule.h"
#include "ops/precision.h"

namespace seqloom {

void DeltaMixer::set_up(int64_t heads, int64_t key_width, int64_t value_width, int64_t query_channels,
                        int64_t conv_size, bool qk_silu) {
  heads_ = heads;
  key_width_ = key_width;
  value_width_ = value_width;
  if (conv_size == 0) return;
  q_conv1d_ = register_module("q_conv1d", std::make_shared<ShortConv>(query_channels, conv_size, false, qk_silu));
  k_conv1d_ = register_module("k_conv1d", std::make_shared<ShortConv>(query_channels, conv_size, false, qk_silu));
  v_conv1d_ = register_module("v_conv1d", std::make_shared<ShortConv>(heads * value_width, conv_size, false, true));
}

double DeltaMixer::scale() const {
  return 1 / std::sqrt(static_cast<double>(key_width_));
}

std::vector<std::string> DeltaMixer::context() const {
  if (!has_conv()) return {};
  return {"q_conv", "k_conv", "v_conv"};
}

Memory DeltaMixer::empty_memory(int64_t batch) const {
  Memory memory;
  memory["S"] = torch::zeros({batch, heads_, key_width_, value_width_}, state_options());
  if (has_conv()) {
    memory["q_conv"] = q_conv1d_->empty_window(batch, state_options());
    memory["k_conv"] = k_conv1d_->empty_window(batch, state_options());
    memory["v_conv"] = v_conv1d_->empty_window(batch, state_options());
  }
  return memory;
}

Tensor DeltaMixer::convolved(const Tensor& projection, const char* name, Memory& memory, const Columns& columns) {
  if (!has_conv()) return projection;
  ShortConv& conv = name[0] == 'q' ? *q_conv1d_ : name[0] == 'k' ? *k_conv1d_ : *v_conv1d_;
  return conv.forward(projection, memory[std::string(name) + "_conv"], columns);
}

DeltaMixer::Projected DeltaMixer::padding_removed(Projected p, const Tensor& keep) const {
  p.beta = p.beta * keep.unsqueeze(-1);  // writes nothing
  if (p.log_decay) p.log_decay = *p.log_decay * keep.unsqueeze(-1);
  return p;
}

DeltaMixer::Projected DeltaMixer::projected(const Tensor& x, Memory& memory, const Layout& layout) {
  const Tensor keep = layout.keep(x.size(0), x.size(1));
  Projected p = project(x, memory, Columns(layout, x));
  return keep.defined() ? padding_removed(std::move(p), keep) : p;
}

Tensor DeltaMixer::read(const Tensor& x, Memory& memory, Pass& pass) {
  const Projected p = projected(x, memory, pass.layout);
  const auto [o, S] =
      ops::delta_rule(p.q, p.k, p.v, p.beta, p.log_decay, scale(), memory["S"], pass.layout.cu_seqlens());
  memory["S"] = S;
  return finish(o, x);
}

std::optional<MatrixForm> DeltaMixer::matrix(const Tensor& x) {
  Memory memory = empty_memory(x.size(0));
  const Projected p = projected(x, memory, Layout());
  // With the unit vectors for values, output i holds what each value contributes to it.
  const int64_t tokens = x.size(1);
  const Tensor units = torch::eye(tokens, ops::widened(p.v).options())
                           .view({1, tokens, 1, tokens})
                           .expand({x.size(0), tokens, heads_, tokens});
  const Tensor weights = std::get<0>(ops::delta_rule(p.q, p.k, units, p.beta, p.log_decay, scale(), {}));
  return MatrixForm{weights.transpose(1, 2), p.v.transpose(1, 2),
                    [this, x](const Tensor& o) { return finish(o.transpose(1, 2), x); }};
}

Memory DeltaMixer::identity_element(int64_t batch) const {
  Memory element;
  element["P"] = torch::eye(key_width_, state_options()).expand({batch, heads_, key_width_, key_width_}).contiguous();
  element["S"] = torch::zeros({batch, heads_, key_width_, value_width_}, state_options());
  return element;
}

Memory DeltaMixer::element(const Tensor& x, Memory& memory, Pass& pass) {
  const Projected p = projected(x, memory, Layout());
  // A state [I | 0] that reads values [0 | v] ends as [P | S].
  const Memory start = identity_element(x.size(0));
  const Tensor v = ops::widened(p.v);
  const Tensor values = torch::cat({torch::zeros({v.size(0), v.size(1), heads_, key_width_}, v.options()), v}, -1);
  const Tensor end = std::get<1>(
      ops::delta_rule(p.q, p.k, values, p.beta, p.log_decay, scale(), torch::cat({start.at("P"), start.at("S")}, -1)));
  Memory element;
  element["P"] = end.narrow(-1, 0, key_width_);
  element["S"] = end.narrow(-1, key_width_, value_width_);
  return element;
}

Memory DeltaMixer::combine_elements(const Memory& left, const Memory& right) const {
  Memory both;
  both["P"] = torch::matmul(right.at("P"), left.at("P"));
  both["S"] = torch::matmul(right.at("P"), left.at("S")) + right.at("S");
  return both;
}

void DeltaMixer::apply_element(const Memory& element, Memory& memory) {
  memory["S"] = torch::matmul(element.at("P"), memory["S"]) + element.at("S");
}

}  // namespace seqloom
