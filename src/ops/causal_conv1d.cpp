#include "ops/causal_conv1d.h"

#include <fmt/ostream.h>
#include <torch/library.h>

#include "base/error.h"
#include "ops/cpu/causal_conv1d.h"
#include "ops/fused.h"
#include "ops/precision.h"
#include "ops/reference_gradient.h"

namespace seqloom::ops {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

void check_shapes(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                  const std::optional<Tensor>& state) {
  if (x.dim() != 3 || x.size(2) < 1 || weight.dim() != 2 || weight.size(0) != x.size(1) || weight.size(1) < 1) {
    misuse("causal_conv1d: x {}, weight {}: expected x [B, E, T] with T >= 1 and weight [E, W]",
           fmt::streamed(x.sizes()), fmt::streamed(weight.sizes()));
  }
  if (bias && (bias->dim() != 1 || bias->size(0) != x.size(1))) {
    misuse("causal_conv1d: bias is {}, expected [{}]", fmt::streamed(bias->sizes()), x.size(1));
  }
  for (const auto& [name, t] : {std::pair("x", x), {"weight", weight}}) {
    if (!t.is_floating_point()) {
      misuse("causal_conv1d: {} is {}, expected a floating type", name, fmt::streamed(t.dtype()));
    }
  }
  const std::vector<int64_t> wanted = {x.size(0), x.size(1), weight.size(1) - 1};
  if (state && state->sizes() != torch::IntArrayRef(wanted)) {
    misuse("causal_conv1d: the initial state is {}, expected [B, E, W-1] = {}", fmt::streamed(state->sizes()),
           fmt::streamed(torch::IntArrayRef(wanted)));
  }
}

/// The inputs with those before them, token-major: [B, W-1+T, E].
Tensor with_history(const Tensor& x, const Tensor& state) {
  return torch::cat({state.transpose(1, 2).to(x.scalar_type()), x.transpose(1, 2)}, 1);
}

Tensor reference(const Tensor& history, const Tensor& weight, const std::optional<Tensor>& bias, bool silu) {
  const int64_t width = weight.size(1), tokens = history.size(1) - width + 1;
  const Tensor wide = widened(history), taps = widened(weight);
  Tensor y = wide.narrow(1, 0, tokens) * taps.select(1, 0);
  for (int64_t j = 1; j < width; ++j) y = y + wide.narrow(1, j, tokens) * taps.select(1, j);
  if (bias) y = y + widened(*bias);
  return silu ? torch::silu(y) : y;
}

/// Token-major history [B, W-1+T, E] -> y [B, T, E], all float32.
class FusedConv : public torch::autograd::Function<FusedConv> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& history, const Tensor& weight,
                        const std::optional<Tensor>& bias, bool silu) {
    const Tensor bias_or_none = bias.value_or(Tensor());
    context->save_for_backward({history, weight, bias_or_none});
    context->saved_data["silu"] = silu;
    return cpu::causal_conv1d_forward(history, weight, bias_or_none, silu);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    const bool silu = context->saved_data["silu"].toBool();
    if (torch::GradMode::is_enabled()) {
      const auto bias = saved[2].defined() ? std::make_optional<Tensor>(saved[2]) : std::nullopt;
      variable_list all = reference_gradients({reference(saved[0], saved[1], bias, silu)}, saved, gradients);
      all.emplace_back();
      return all;
    }
    const auto [dx, dweight, dbias] =
        cpu::causal_conv1d_backward(gradients[0].contiguous(), saved[0], saved[1], saved[2], silu);
    return {dx, dweight, dbias, Tensor()};
  }
};

}  // namespace

std::tuple<Tensor, Tensor> causal_conv1d(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                                         const std::optional<Tensor>& initial_state, bool silu) {
  check_shapes(x, weight, bias, initial_state);
  const int64_t before = weight.size(1) - 1;
  const Tensor state = initial_state ? *initial_state : torch::zeros({x.size(0), x.size(1), before}, x.options());
  const Tensor history = with_history(widened(x), state);
  const bool fused = fused_enabled() && x.is_cpu() && history.scalar_type() == torch::kFloat32 &&
                     widened(weight).scalar_type() == torch::kFloat32;
  const auto wide_bias = bias ? std::make_optional(widened(*bias).contiguous()) : std::nullopt;
  const Tensor y = fused ? FusedConv::apply(history.contiguous(), widened(weight).contiguous(), wide_bias, silu)
                         : reference(history, weight, bias, silu);
  const Tensor after = history.narrow(1, history.size(1) - before, before).transpose(1, 2);
  return {y.to(x.scalar_type()).transpose(1, 2), after.contiguous()};
}

TORCH_LIBRARY_FRAGMENT(seqloom, m) {
  m.def(
      "causal_conv1d(Tensor x, Tensor weight, Tensor? bias=None, Tensor? initial_state=None, bool silu=False) -> "
      "(Tensor, Tensor)",
      &causal_conv1d);
}

}  // namespace seqloom::ops
