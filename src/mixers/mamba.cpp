#include "mixers/mamba.h"

#include <cmath>

#include "mixers/heads.h"
#include "ops/linear.h"
#include "ops/precision.h"
#include "ops/selective_scan.h"
#include "ops/selective_scan_step.h"

namespace seqloom {

SEQLOOM_REGISTER_MIXER("mamba", Mamba);

Mamba::Mamba(int64_t width, const Options& options)
    : ScannableMixer(width),
      options_(options),
      inner_(width * options.expand),
      rank_(options.dt_rank.value_or((width + 15) / 16)) {
  const int64_t states = options.d_state;
  in_proj_ = register_module("in_proj", linear(width, 2 * inner_, options.bias));
  conv1d_ = register_module("conv1d", std::make_shared<ShortConv>(inner_, options.d_conv, options.conv_bias, true));
  x_proj_ = register_module("x_proj", linear(inner_, rank_ + 2 * states, false));
  dt_proj_ = register_module("dt_proj", float_linear(rank_, inner_, true));
  A_log_ = register_parameter("A_log", torch::arange(1, states + 1, torch::kFloat32).log().repeat({inner_, 1}));
  D_ = register_parameter("D", torch::ones({inner_}));
  out_proj_ = register_module("out_proj", linear(inner_, width, options.bias));
  torch::NoGradGuard no_grad;
  const double bound = options.dt_scale / std::sqrt(static_cast<double>(rank_));
  dt_proj_->weight.uniform_(-bound, bound);
  dt_proj_->bias.copy_(options.step.bias(inner_));
}

Tensor Mamba::A() const {
  return -ops::widened(A_log_).exp();
}

Memory Mamba::empty_memory(int64_t batch) const {
  Memory memory;
  memory["conv"] = conv1d_->empty_window(batch, state_options());
  memory["ssm"] = torch::zeros({batch, inner_, options_.d_state}, state_options());
  return memory;
}

Mamba::Selected Mamba::select(const Tensor& x, Memory& memory, const Layout& layout) {
  const auto uz = in_proj_(x).chunk(2, -1);
  const Tensor keep = layout.keep(x.size(0), x.size(1));
  Selected s;
  s.u = conv1d_->forward(uz[0], memory["conv"], Columns(layout, x));
  s.z = uz[1];
  const auto parts = x_proj_(s.u).split_with_sizes({rank_, options_.d_state, options_.d_state}, -1);
  s.B = parts[1];
  s.C = parts[2];
  // dt_proj's bias is added inside the scan, in float32
  s.delta = torch::linear(parts[0], dt_proj_->weight);
  s.positive = keep.defined();
  if (s.positive)
    s.delta = step_size({{}, {}, s.delta, {}, {}, false}) * keep.unsqueeze(-1);  // no time passes at padding
  return s;
}

Tensor Mamba::step_size(const Selected& s) const {
  if (s.positive) return s.delta;
  return torch::softplus(ops::widened(s.delta) + ops::widened(dt_proj_->bias));
}

std::pair<Tensor, Tensor> Mamba::scan(const Selected& s, bool gated, const Tensor& initial_state,
                                      const Layout& layout) {
  const auto channels_first = [](const Tensor& t) { return t.transpose(1, 2); };
  const std::optional<Tensor> z = gated ? std::make_optional(channels_first(s.z)) : std::nullopt;
  const std::optional<Tensor> bias = s.positive ? std::nullopt : std::make_optional(dt_proj_->bias);
  const auto [y, state] =
      ops::selective_scan(channels_first(s.u), channels_first(s.delta), A(), channels_first(s.B), channels_first(s.C),
                          D_, z, bias, /*delta_softplus=*/!s.positive, initial_state, layout.cu_seqlens());
  return {channels_first(y), state};
}

Tensor Mamba::read(const Tensor& x, Memory& memory, Pass& pass) {
  const Selected s = select(x, memory, pass.layout);
  const auto [y, state] = scan(s, /*gated=*/true, memory["ssm"], pass.layout);
  memory["ssm"] = state;
  return out_proj_(y.to(x.scalar_type()));
}

Tensor Mamba::read_each(const Tensor& x, at::ArrayRef<Memory*> streams, Pass&) {
  const auto uz = in_proj_(x).chunk(2, -1);
  const Tensor u = conv1d_->step(uz[0], streams, "conv");
  const auto parts = x_proj_(u).split_with_sizes({rank_, options_.d_state, options_.d_state}, -1);
  const Tensor delta = ops::linear(parts[0], dt_proj_->weight);
  const Tensor rates = rates_.of(A_log_, [this](const Tensor&) { return A().detach().t().contiguous(); });
  const Tensor y = ops::selective_scan_step(u, delta, rates.t(), parts[1], parts[2], D_, uz[1], dt_proj_->bias,
                                            /*delta_softplus=*/true, states_of(streams, "ssm", /*inner=*/1));
  count_each(streams);
  return out_proj_(y.to(x.scalar_type()));
}

std::optional<MatrixForm> Mamba::matrix(const Tensor& x) {
  Memory memory = empty_memory(x.size(0));
  const Selected s = select(x, memory, Layout());
  const Tensor delta = step_size(s).transpose(1, 2);  // [B, E, T]
  const Tensor elapsed = delta.cumsum(-1), a = A();
  const Tensor difference = elapsed.unsqueeze(-1) - elapsed.unsqueeze(-2);  // [B, E, i, j]
  Tensor weights = torch::zeros_like(difference);
  for (int64_t n = 0; n < options_.d_state; ++n) {  // one state at a time: [B, E, T, T, N] would be too much
    const Tensor reads = ops::widened(s.C).select(-1, n).unsqueeze(1).unsqueeze(-1);
    const Tensor writes = ops::widened(s.B).select(-1, n).unsqueeze(1).unsqueeze(-2);
    weights = weights + reads * writes * (a.select(-1, n).view({1, -1, 1, 1}) * difference.clamp_min(0)).exp();
  }
  weights = (weights * delta.unsqueeze(-2)).tril();
  const Tensor values = ops::widened(s.u).transpose(1, 2).unsqueeze(-1);
  return MatrixForm{weights, values, [this, s, x](const Tensor& o) {
                      const Tensor y = o.squeeze(-1).transpose(1, 2) + D_ * s.u;
                      return out_proj_((y * torch::silu(s.z)).to(x.scalar_type()));
                    }};
}

Memory Mamba::identity_element(int64_t batch) const {
  Memory element;
  element["log_decay"] = torch::zeros({batch, inner_, options_.d_state}, state_options());
  element["ssm"] = torch::zeros({batch, inner_, options_.d_state}, state_options());
  return element;
}

Memory Mamba::element(const Tensor& x, Memory& memory, Pass& pass) {
  const Selected s = select(x, memory, Layout());
  Memory element;
  element["log_decay"] = A() * step_size(s).sum(1).unsqueeze(-1);
  const Tensor nothing = torch::zeros({x.size(0), inner_, options_.d_state}, state_options());
  element["ssm"] = scan(s, /*gated=*/false, nothing, Layout()).second;
  return element;
}

Memory Mamba::combine_elements(const Memory& left, const Memory& right) const {
  Memory both;
  both["log_decay"] = left.at("log_decay") + right.at("log_decay");
  both["ssm"] = right.at("log_decay").exp() * left.at("ssm") + right.at("ssm");
  return both;
}

void Mamba::apply_element(const Memory& element, Memory& memory) {
  memory["ssm"] = element.at("log_decay").exp() * memory["ssm"] + element.at("ssm");
}

}  // namespace seqloom
