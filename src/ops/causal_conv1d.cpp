#include "ops/causal_conv1d.h"

#include <fmt/ostream.h>

#include "base/error.h"
#include "ops/cpu/causal_conv1d.h"
#include "ops/fused.h"
#include "ops/operator.h"
#include "ops/packing.h"
#include "ops/precision.h"
#include "ops/reference_gradient.h"

namespace seqloom::ops {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Optional = std::optional<Tensor>;

void check_shapes(const Tensor& x, const Tensor& weight, const Optional& bias, const Optional& cu_seqlens) {
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
  if (cu_seqlens && x.size(0) != 1) {
    misuse("causal_conv1d: x is {}, expected packed sequences [1, E, T] beside cu_seqlens", fmt::streamed(x.sizes()));
  }
}

void check_state(const Tensor& state, torch::IntArrayRef wanted) {
  if (state.sizes() == wanted) return;
  misuse("causal_conv1d: the initial state is {}, expected [B, E, W-1], or [S, E, W-1] of packed sequences, {}",
         fmt::streamed(state.sizes()), fmt::streamed(wanted));
}

/// y [B, T, E] and the last inputs [B, W-1, E] of x [B, T, E] behind state [B, W-1, E]; taps [W, E]. T may be 0.
std::tuple<Tensor, Tensor> reference(const Tensor& x, const Tensor& taps, const Optional& bias, const Tensor& state,
                                     bool silu) {
  const int64_t before = taps.size(0) - 1, tokens = x.size(1);
  const Tensor rows = widened(x), wide = widened(taps);
  const Tensor history = torch::cat({state.to(rows.scalar_type()), rows}, 1);
  Tensor y = history.narrow(1, 0, tokens) * wide[0];
  for (int64_t j = 1; j <= before; ++j) y = y + history.narrow(1, j, tokens) * wide[j];
  if (bias) y = y + widened(*bias);
  if (silu) y = torch::silu(y);
  return {y.to(x.scalar_type()), history.narrow(1, tokens, before)};
}

/// The reference for each packed sequence by itself: x [1, R, E], state [S, W-1, E].
std::tuple<Tensor, Tensor> packed_reference(const Tensor& x, const Tensor& taps, const Optional& bias,
                                            const Tensor& state, bool silu, const Tensor& offsets) {
  const auto xs = split_sequences(x, offsets, 1), before = state.split(1, 0);
  std::vector<Tensor> ys, states;
  for (size_t s = 0; s < xs.size(); ++s) {
    const auto [y, last] = reference(xs[s], taps, bias, before[s], silu);
    ys.push_back(y);
    states.push_back(last);
  }
  return {torch::cat(ys, 1), torch::cat(states, 0)};
}

/// The fused kernel with its gradient, in the kernel's layouts: x [R, E], taps, bias, state [S, W-1, E].
class FusedConv : public torch::autograd::Function<FusedConv> {
 public:
  static variable_list forward(AutogradContext* context, const Tensor& x, const Tensor& taps, const Optional& bias,
                               const Tensor& state, const Tensor& offsets, bool silu) {
    const cpu::ConvInputs in{x, taps, bias.value_or(Tensor()), state, to_vector(offsets), silu};
    const cpu::ConvOutputs out = cpu::causal_conv1d_forward(in);
    context->save_for_backward({in.x, in.taps, in.bias, in.state, offsets});
    context->saved_data["silu"] = silu;
    return {out.y, out.state};
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto s = context->get_saved_variables();
    const bool silu = context->saved_data["silu"].toBool();
    const Tensor none;
    if (torch::GradMode::is_enabled()) {
      const auto bias = s[2].defined() ? Optional(s[2]) : std::nullopt;
      const auto [y, state] = packed_reference(s[0].unsqueeze(0), s[1], bias, s[3], silu, s[4]);
      const auto g = reference_gradients({y.squeeze(0), state}, variable_list(s.begin(), s.begin() + 4), gradients);
      return {g[0], g[1], g[2], g[3], none, none};
    }
    const cpu::ConvInputs in{s[0], s[1], s[2], s[3], to_vector(s[4]), silu};
    const Tensor dy = gradients[0].stride(1) == 1 ? gradients[0] : gradients[0].contiguous();
    const auto g = cpu::causal_conv1d_backward(in, dy, gradients[1].contiguous());
    return {g.x, g.taps, g.bias, g.state, none, none};
  }
};

}  // namespace

std::tuple<Tensor, Tensor> causal_conv1d(const Tensor& x, const Tensor& weight, const Optional& bias,
                                         const Optional& initial_state, bool silu, const Optional& cu_seqlens) {
  check_shapes(x, weight, bias, cu_seqlens);
  const Tensor offsets = cu_seqlens ? checked_offsets(*cu_seqlens, x.size(2), "causal_conv1d: cu_seqlens")
                                    : dense_offsets(x.size(0), x.size(2));
  const std::vector<int64_t> state_shape = {offsets.size(0) - 1, x.size(1), weight.size(1) - 1};
  if (initial_state) check_state(*initial_state, state_shape);
  const Tensor start = initial_state ? *initial_state : torch::zeros(state_shape, widened(x).options());
  const Tensor state = start.transpose(1, 2), rows = x.transpose(1, 2), taps = weight.t();
  if (weight.size(1) <= cpu::kMaxConvWidth && fusable({x, weight, bias.value_or(Tensor()), start})) {
    const auto plain = [](const Tensor& t) { return widened(t).contiguous(); };
    const bool narrow = x.scalar_type() == torch::kBFloat16;  // which is read as it is
    const auto out = FusedConv::apply(channel_rows(narrow ? x : widened(x)), plain(taps),
                                      bias ? Optional(plain(*bias)) : std::nullopt, plain(state), offsets, silu);
    return {out[0].view({x.size(0), x.size(2), x.size(1)}).to(x.scalar_type()).transpose(1, 2), out[1].transpose(1, 2)};
  }
  const auto [y, last] =
      cu_seqlens ? packed_reference(rows, taps, bias, state, silu, offsets) : reference(rows, taps, bias, state, silu);
  return {y.transpose(1, 2), last.transpose(1, 2).contiguous()};
}

TORCH_LIBRARY_FRAGMENT(seqloom, m) {
  define(
      m,
      "causal_conv1d(Tensor x, Tensor weight, Tensor? bias=None, Tensor? initial_state=None, bool silu=False, Tensor? "
      "cu_seqlens=None) -> (Tensor, Tensor)",
      &causal_conv1d, {.transposed = {true, true}});
}

}  // namespace seqloom::ops
