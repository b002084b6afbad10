#include "mixers/hgrn.h"

#include <cmath>

#include "mixers/heads.h"
#include "ops/affine_scan.h"
#include "ops/precision.h"

namespace seqloom {
namespace {

/// magnitude e^{i angle}
Tensor from_polar(const Tensor& magnitude, const Tensor& angle) {
  return torch::complex(magnitude * angle.cos(), magnitude * angle.sin());
}

}  // namespace

SEQLOOM_REGISTER_MIXER("hgrn", Hgrn);

Hgrn::Hgrn(int64_t width, const Options& o) : ScannableMixer(width), options_(o) {
  input_proj_ = register_module("input_proj", linear(width, 2 * width, o.bias));
  lambda_proj_ = register_module("lambda_proj", linear(width, width, o.bias));
  gate_ = register_module("gate", linear(width, 2 * width, o.bias));
  norm_ = register_module("norm", std::make_shared<Norm>("layer", 2 * width, 1e-5));
  out_proj_ = register_module("out_proj", linear(2 * width, width, o.bias));
  // as rotary frequencies, from a turn each token to almost none
  const Tensor exponent = -2 * torch::arange(width, torch::kFloat32) / static_cast<double>(width);
  theta_ = register_parameter("theta", torch::pow(10000.0, exponent).view({1, 1, width}));
}

Memory Hgrn::empty_memory(int64_t batch) const {
  Memory memory;
  memory["state"] = torch::zeros({batch, width(), 2}, state_options());
  return memory;
}

Hgrn::Recurrence Hgrn::recurrence(const Tensor& x, const Layout& layout) {
  const Tensor c = torch::silu(ops::widened(input_proj_(x))).unflatten(-1, {width(), 2});
  const Tensor logit = ops::widened(lambda_proj_(x));
  const double open = 1 - options_.lower_bound;
  Tensor decay = options_.lower_bound + open * torch::sigmoid(logit), angle = ops::widened(theta_);
  Tensor admitted = open * torch::sigmoid(-logit);  // 1 - l without cancellation
  const Tensor keep = layout.keep(x.size(0), x.size(1));
  if (keep.defined()) {  // padding keeps the state as it is
    const Tensor real = keep.unsqueeze(-1);
    decay = decay.masked_fill(real.logical_not(), 1);
    angle = angle * real;
    admitted = admitted * real;
  }
  return {decay.log(), from_polar(decay, angle), torch::view_as_complex((admitted.unsqueeze(-1) * c).contiguous())};
}

Tensor Hgrn::read(const Tensor& x, Memory& memory, Pass& pass) {
  const Recurrence r = recurrence(x, pass.layout);
  const auto [h, last] = ops::affine_scan(r.transition, r.input, torch::view_as_complex(memory["state"].contiguous()),
                                          pass.layout.cu_seqlens());
  memory["state"] = torch::view_as_real(last);
  const Tensor parts = torch::cat({torch::real(h), torch::imag(h)}, -1);
  return out_proj_(norm_->forward(parts).to(x.scalar_type()) * torch::silu(gate_(x)));
}

Memory Hgrn::identity_element(int64_t batch) const {
  Memory element;
  element["log_decay"] = torch::zeros({batch, width()}, state_options());
  element["state"] = torch::zeros({batch, width(), 2}, state_options());
  return element;
}

Memory Hgrn::element(const Tensor& x, Memory&, Pass& pass) {
  const Recurrence r = recurrence(x, Layout());
  Memory element;
  element["log_decay"] = r.log_decay.sum(1);
  element["state"] = torch::view_as_real(std::get<1>(ops::affine_scan(r.transition, r.input, {})));
  return element;
}

Tensor Hgrn::appended(const Tensor& state, const Memory& element) const {
  const Tensor turned = ops::widened(theta_).view({1, -1}) * static_cast<double>(element.tokens);
  const Tensor kept = from_polar(element.at("log_decay").exp(), turned) * torch::view_as_complex(state.contiguous());
  return torch::view_as_real(kept) + element.at("state");
}

Memory Hgrn::combine_elements(const Memory& left, const Memory& right) const {
  Memory both;
  both["log_decay"] = left.at("log_decay") + right.at("log_decay");
  both["state"] = appended(left.at("state"), right);
  return both;
}

void Hgrn::apply_element(const Memory& element, Memory& memory) {
  memory["state"] = appended(memory["state"], element);
}

}  // namespace seqloom
