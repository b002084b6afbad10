#include "mixers/mamba2.h"

#include <limits>

#include "mixers/heads.h"
#include "ops/gated_linear_attention_step.h"
#include "ops/precision.h"
#include "ops/row_by_row.h"
#include "ops/ssd.h"

namespace seqloom {
namespace {

void check_options(const Mamba2Options& o, int64_t inner, int64_t ssm) {
  if (ssm > inner) misuse("d_ssm = {} is above the inner width {}", ssm, inner);
  if (ssm % o.headdim != 0) misuse("headdim = {} does not divide the {} channels of the scan", o.headdim, ssm);
  if (ssm / o.headdim % o.ngroups != 0) misuse("ngroups = {} does not divide {} heads", o.ngroups, ssm / o.headdim);
  if (o.dt_limit.empty() || o.dt_limit.size() > 2 || o.dt_limit.front() > o.dt_limit.back()) {
    misuse("dt_limit = [{}]: expected [low] or [low, high] with low <= high", fmt::join(o.dt_limit, ", "));
  }
}

ops::StepRule step_rule(const Mamba2Options& o, const Tensor& bias) {
  ops::StepRule rule{bias, /*softplus=*/true, o.dt_limit.front()};
  if (o.dt_limit.size() == 2) rule.high = o.dt_limit.back();
  return rule;
}

}  // namespace

SEQLOOM_REGISTER_MIXER("mamba2", Mamba2);

Mamba2::Mamba2(int64_t width, const Options& o)
    : ScannableMixer(width), options_(o), inner_(width * o.expand), ssm_(o.d_ssm.value_or(inner_)) {
  check_options(o, inner_, ssm_);
  heads_ = ssm_ / o.headdim;
  const int64_t convolved = ssm_ + 2 * o.ngroups * o.d_state;
  in_proj_ = register_module("in_proj", linear(width, 2 * (inner_ - ssm_) + ssm_ + convolved + heads_, o.bias));
  conv1d_ = register_module("conv1d", std::make_shared<ShortConv>(convolved, o.d_conv, o.conv_bias, /*silu=*/true));
  dt_bias_ = register_parameter("dt_bias", o.step.bias(heads_));
  A_log_ = register_parameter("A_log", torch::empty({heads_}).uniform_(1, 16).log());
  D_ = register_parameter("D", torch::ones({o.d_has_hdim ? ssm_ : heads_}));
  if (o.rmsnorm) norm_ = register_module("norm", std::make_shared<RmsNorm>(ssm_, o.norm_eps, o.ngroups));
  out_proj_ = register_module("out_proj", linear(inner_, width, o.bias));
}

Config Mamba2::from_case(Config config, const std::map<std::string, std::vector<int64_t>>&) {
  if (config.contains("dt_limit") && config["dt_limit"].size() == 2 && config["dt_limit"][1].is_null()) {
    config["dt_limit"].erase(1);
  }
  return config;
}

Tensor Mamba2::A() const {
  return -ops::widened(A_log_).exp();
}

Tensor Mamba2::skip() const {
  return options_.d_has_hdim ? D_.view({heads_, options_.headdim}) : D_;
}

Tensor Mamba2::state_like(int64_t batch) const {
  return torch::zeros({batch, heads_, options_.headdim, options_.d_state}, state_options());
}

Memory Mamba2::empty_memory(int64_t batch) const {
  Memory memory;
  memory["conv"] = conv1d_->empty_window(batch, state_options());
  memory["ssm"] = state_like(batch);
  return memory;
}

Mamba2::Selected Mamba2::select(const Tensor& u, Memory& memory, const Layout& layout) {
  const int64_t beside = inner_ - ssm_, maps = options_.ngroups * options_.d_state;
  const auto parts = in_proj_(u).split_with_sizes({beside, beside, ssm_, ssm_ + 2 * maps, heads_}, -1);
  const auto convolved =
      conv1d_->forward(parts[3], memory["conv"], Columns(layout, u)).split_with_sizes({ssm_, maps, maps}, -1);
  Selected s;
  if (beside > 0) s.mlp = torch::silu(parts[0]) * parts[1];
  s.z = split_heads(parts[2], heads_);
  s.x = split_heads(convolved[0], heads_);
  s.B = split_heads(convolved[1], options_.ngroups);
  s.C = split_heads(convolved[2], options_.ngroups);
  s.dt = ops::step_sizes(parts[4], step_rule(options_, dt_bias_));
  const Tensor keep = layout.keep(u.size(0), u.size(1));
  if (keep.defined()) s.dt = s.dt * keep.unsqueeze(-1);  // no time passes at padding
  return s;
}

std::tuple<Tensor, Tensor> Mamba2::scan(const Selected& s, const Tensor& initial_state, const Layout& layout) const {
  return ops::ssd(s.x, s.dt, A(), s.B, s.C, skip(), {}, {}, layout.start(initial_state), layout.cu_seqlens(),
                  options_.chunk_size);
}

Tensor Mamba2::finish(const Tensor& y, const Selected& s, torch::ScalarType type) {
  const Tensor merged = merge_heads(y), z = merge_heads(s.z);
  const Tensor gated = norm_ ? norm_->gated(merged, z, options_.norm_before_gate)
                             : merged * ops::elementwise(z, [](const Tensor& t) { return torch::silu(t); });
  return out_proj_((s.mlp.defined() ? torch::cat({s.mlp, gated}, -1) : gated).to(type));
}

Tensor Mamba2::read(const Tensor& x, Memory& memory, Pass& pass) {
  const Selected s = select(x, memory, pass.layout);
  const auto [y, state] = scan(s, memory["ssm"], pass.layout);
  memory["ssm"] = state;
  return finish(y, s, x.scalar_type());
}

Tensor Mamba2::read_each(const Tensor& x, at::ArrayRef<Memory*> streams, Pass&) {
  const int64_t beside = inner_ - ssm_, maps = options_.ngroups * options_.d_state;
  const auto parts = in_proj_(x).split_with_sizes({beside, beside, ssm_, ssm_ + 2 * maps, heads_}, -1);
  const auto convolved = conv1d_->step(parts[3], streams, "conv").split_with_sizes({ssm_, maps, maps}, -1);
  Selected s;
  if (beside > 0) s.mlp = ops::elementwise(parts[0], [](const Tensor& z) { return torch::silu(z); }) * parts[1];
  s.z = split_heads(parts[2], heads_);
  s.x = split_heads(convolved[0], heads_);
  s.dt = ops::elementwise(parts[4],
                          [this](const Tensor& dt) { return ops::step_sizes(dt, step_rule(options_, dt_bias_)); });
  std::vector<Tensor> states = states_of(streams, "ssm", /*inner=*/2);
  for (Tensor& state : states) state = state.transpose(2, 3);  // [1, H, N, P]
  const Tensor wide = ops::widened(s.x);
  const Tensor o = ops::gated_linear_attention_step(split_heads(ops::widened(convolved[2]), options_.ngroups),
                                                    split_heads(ops::widened(convolved[1]), options_.ngroups),
                                                    s.dt.unsqueeze(-1) * wide, s.dt * A(), /*scale=*/1, states);
  count_each(streams);
  const Tensor D = options_.d_has_hdim ? skip() : skip().unsqueeze(-1);
  return finish((o + ops::widened(D) * wide).to(s.x.scalar_type()), s, x.scalar_type());
}

std::optional<MatrixForm> Mamba2::matrix(const Tensor& x) {
  Memory memory = empty_memory(x.size(0));
  const Selected s = select(x, memory, Layout());
  const Tensor values = ops::widened(s.x).transpose(1, 2);
  return MatrixForm{ops::ssd_matrix(s.dt, A(), s.B, s.C), values, [this, s, type = x.scalar_type()](const Tensor& o) {
                      const Tensor D = options_.d_has_hdim ? skip() : skip().unsqueeze(-1);
                      return finish(o.transpose(1, 2) + D * s.x, s, type);
                    }};
}

Memory Mamba2::identity_element(int64_t batch) const {
  Memory element;
  element["log_decay"] = torch::zeros({batch, heads_}, state_options());
  element["ssm"] = state_like(batch);
  return element;
}

Memory Mamba2::element(const Tensor& x, Memory& memory, Pass& pass) {
  const Selected s = select(x, memory, Layout());
  Memory element;
  element["log_decay"] = A() * s.dt.sum(1);
  element["ssm"] = std::get<1>(scan(s, state_like(x.size(0)), Layout()));
  return element;
}

namespace {

/// What `element` makes of a state that stood before it.
Tensor appended(const Tensor& state, const Memory& element) {
  return element.at("log_decay").exp().unsqueeze(-1).unsqueeze(-1) * state + element.at("ssm");
}

}  // namespace

Memory Mamba2::combine_elements(const Memory& left, const Memory& right) const {
  Memory both;
  both["log_decay"] = left.at("log_decay") + right.at("log_decay");
  both["ssm"] = appended(left.at("ssm"), right);
  return both;
}

void Mamba2::apply_element(const Memory& element, Memory& memory) {
  memory["ssm"] = appended(memory["ssm"], element);
}

}  // namespace seqloom
