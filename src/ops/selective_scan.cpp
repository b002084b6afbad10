#include "ops/selective_scan.h"

#include <fmt/ostream.h>
#include <torch/library.h>

#include <numeric>

#include "base/error.h"
#include "ops/affine_scan.h"
#include "ops/cpu/selective_scan.h"
#include "ops/fused.h"
#include "ops/precision.h"
#include "ops/reference_gradient.h"

namespace seqloom::ops {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Optional = std::optional<Tensor>;

void check_map(const char* name, const Tensor& m, const Tensor& u, const Tensor& A) {
  const int64_t batch = u.size(0), channels = u.size(1), states = A.size(1);
  const int64_t tokens = u.size(2) * (A.is_complex() ? 2 : 1);
  const bool constant = m.dim() == 2 && m.size(0) == channels && m.size(1) == states;
  const bool plain = m.dim() == 3 && m.size(0) == batch && m.size(1) == states && m.size(2) == tokens;
  const bool grouped = m.dim() == 4 && m.size(0) == batch && m.size(2) == states && m.size(3) == tokens;
  if (grouped && (m.size(1) < 1 || channels % m.size(1) != 0)) {
    misuse("selective_scan: {} has {} groups, which do not divide E = {}", name, m.size(1), channels);
  }
  if (!constant && !plain && !grouped) {
    misuse("selective_scan: {} is {}, expected [E, N], [B, N, T] or [B, G, N, T] with B = {}, E = {}, N = {}, T = {}",
           name, fmt::streamed(m.sizes()), batch, channels, states, tokens);
  }
}

void check_floating(const char* name, const Tensor& t, const Tensor& u) {
  if (!t.is_floating_point() && !t.is_complex()) {
    misuse("selective_scan: {} is {}, expected a floating type", name, fmt::streamed(t.dtype()));
  }
  if (t.device() != u.device()) {
    misuse("selective_scan: {} is on {} and u on {}; move them to one device", name, fmt::streamed(t.device()),
           fmt::streamed(u.device()));
  }
}

void check_shapes(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B, const Tensor& C,
                  const Optional& D, const Optional& z, const Optional& bias, const Optional& state) {
  if (u.dim() != 3 || u.size(2) < 1)
    misuse("selective_scan: u is {}, expected [B, E, T] with T >= 1", fmt::streamed(u.sizes()));
  if (A.dim() != 2 || A.size(0) != u.size(1) || A.size(1) < 1) {
    misuse("selective_scan: A is {}, expected [E, N] with E = {}", fmt::streamed(A.sizes()), u.size(1));
  }
  for (const auto& [name, t] : {std::pair("u", u), {"A", A}, {"B", B}, {"C", C}}) check_floating(name, t, u);
  const auto same = [&](const char* name, const Tensor& t, torch::IntArrayRef shape) {
    check_floating(name, t, u);
    if (t.sizes() != shape)
      misuse("selective_scan: {} is {}, expected {}", name, fmt::streamed(t.sizes()), fmt::streamed(shape));
  };
  same("delta", delta, u.sizes());
  if (z) same("z", *z, u.sizes());
  if (D) same("D", *D, {u.size(1)});
  if (bias) same("delta_bias", *bias, {u.size(1)});
  if (state) same("the initial state", *state, {u.size(0), u.size(1), A.size(1)});
  check_map("B", B, u, A);
  check_map("C", C, u, A);
}

/// B or C as [B or 1, T or 1, E, N] for broadcasting, complex if A is.
Tensor per_channel(const Tensor& m, const Tensor& u, bool is_complex) {
  Tensor map = m;
  if (map.dim() == 2) return map.unsqueeze(0).unsqueeze(0);
  if (is_complex) map = torch::view_as_complex(map.unflatten(-1, {-1, 2}).contiguous());
  if (map.dim() == 3) map = map.unsqueeze(1);
  return map.repeat_interleave(u.size(1) / map.size(1), 1).permute({0, 3, 1, 2});
}

std::tuple<Tensor, Tensor> reference(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B,
                                     const Tensor& C, const Optional& D, const Optional& z, const Optional& bias,
                                     bool softplus, const Optional& initial_state) {
  const auto token_major = [](const Tensor& t) { return widened(t).transpose(1, 2); };
  Tensor step = token_major(delta);
  if (bias) step = step + widened(*bias);
  if (softplus) step = torch::softplus(step);
  const Tensor x = token_major(u), a = widened(A);
  const Tensor decay = (step.unsqueeze(-1) * a).exp();  // [B, T, E, N]
  const Tensor added = (step * x).unsqueeze(-1) * per_channel(widened(B), u, A.is_complex());
  const auto [h, last] = affine_scan(decay, added.expand_as(decay), initial_state);
  Tensor y = (h * per_channel(widened(C), u, A.is_complex())).sum(-1);
  if (A.is_complex()) y = 2 * torch::real(y);
  if (D) y = y + widened(*D) * x;
  if (z) y = y * torch::silu(token_major(*z));
  return {y.transpose(1, 2).to(u.scalar_type()), last};
}

int64_t groups_of(const Tensor& m) {
  return m.dim() == 4 ? m.size(1) : 1;
}

/// B or C in the kernel's layout: [N, E] when constant, else [B, T, G, N] with `groups` groups.
Tensor kernel_map(const Tensor& m, int64_t groups) {
  if (m.dim() == 2) return m.t().contiguous();
  const Tensor grouped = m.dim() == 3 ? m.unsqueeze(1) : m;
  return grouped.repeat_interleave(groups / grouped.size(1), 1).permute({0, 3, 1, 2}).contiguous();
}

/// y and the final state by the reference, from and in the kernel's layouts: u, delta, z, A, B, C, D, bias, state.
variable_list by_reference(const variable_list& s, bool softplus) {
  const auto optional = [](const Tensor& t) { return t.defined() ? Optional(t) : std::nullopt; };
  const auto map = [](const Tensor& m) { return m.dim() == 2 ? m.t() : m.permute({0, 2, 3, 1}); };
  const Optional z = s[2].defined() ? Optional(s[2].transpose(1, 2)) : std::nullopt;
  const auto [y, state] = reference(s[0].transpose(1, 2), s[1].transpose(1, 2), s[3].t(), map(s[4]), map(s[5]),
                                    optional(s[6]), z, optional(s[7]), softplus, s[8].transpose(1, 2));
  return {y.transpose(1, 2), state.transpose(1, 2)};
}

/// The fused kernel with its gradient, in the kernel's layouts: u, delta, A, B, C, D, z, bias, state.
class FusedScan : public torch::autograd::Function<FusedScan> {
 public:
  static variable_list forward(AutogradContext* context, const Tensor& u, const Tensor& delta, const Tensor& A,
                               const Tensor& B, const Tensor& C, const Optional& D, const Optional& z,
                               const Optional& bias, const Tensor& state, bool softplus, bool needs_gradient) {
    cpu::ScanInputs in{u,     delta,   z.value_or(Tensor()), A, B, C, D.value_or(Tensor()), bias.value_or(Tensor()),
                       state, softplus};
    const cpu::ScanOutputs out = cpu::selective_scan_forward(in, needs_gradient);
    context->save_for_backward({in.u, in.delta, in.z, in.A, in.B, in.C, in.D, in.bias, in.state, out.checkpoints});
    context->saved_data["softplus"] = softplus;
    return {out.y, out.state};
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto s = context->get_saved_variables();
    if (torch::GradMode::is_enabled()) {
      variable_list all = reference_gradients(by_reference(s, context->saved_data["softplus"].toBool()),
                                              variable_list(s.begin(), s.begin() + 9), gradients);
      // saved as u, delta, z, A, B, C, D, bias, state; taken as u, delta, A, B, C, D, z, bias, state
      return {all[0], all[1], all[3], all[4], all[5], all[6], all[2], all[7], all[8], Tensor(), Tensor()};
    }
    const cpu::ScanInputs in{s[0], s[1], s[2], s[3], s[4],
                             s[5], s[6], s[7], s[8], context->saved_data["softplus"].toBool()};
    const auto g = cpu::selective_scan_backward(in, s[9], gradients[0].contiguous(), gradients[1].contiguous());
    return {g.u, g.delta, g.A, g.B, g.C, g.D, g.z, g.bias, g.state, Tensor(), Tensor()};
  }
};

std::tuple<Tensor, Tensor> fused(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B,
                                 const Tensor& C, const Optional& D, const Optional& z, const Optional& bias,
                                 bool softplus, const Optional& initial_state) {
  // Channel-major tensors are usually transposed views of what a GEMM left: token-major then costs nothing.
  const auto token_major = [](const Tensor& t) { return widened(t).transpose(1, 2).contiguous(); };
  const auto wide = [](const Optional& t) { return t ? std::make_optional(widened(*t).contiguous()) : std::nullopt; };
  const Optional gate = z ? std::make_optional(token_major(*z)) : std::nullopt;
  const Tensor state = initial_state ? widened(*initial_state).transpose(1, 2).contiguous()
                                     : torch::zeros({u.size(0), A.size(1), u.size(1)}, widened(A).options());
  bool needs_gradient = false;
  for (const Optional& t :
       {Optional(u), Optional(delta), Optional(A), Optional(B), Optional(C), D, z, bias, initial_state}) {
    needs_gradient = needs_gradient || (t && t->requires_grad());
  }
  const int64_t groups = std::lcm(groups_of(B), groups_of(C));
  const auto out = FusedScan::apply(token_major(u), token_major(delta), widened(A).t().contiguous(),
                                    kernel_map(widened(B), groups), kernel_map(widened(C), groups), wide(D), gate,
                                    wide(bias), state, softplus, needs_gradient && torch::GradMode::is_enabled());
  return {out[0].to(u.scalar_type()).transpose(1, 2), out[1].transpose(1, 2)};
}

}  // namespace

std::tuple<Tensor, Tensor> selective_scan(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B,
                                          const Tensor& C, const Optional& D, const Optional& z,
                                          const Optional& delta_bias, bool delta_softplus,
                                          const Optional& initial_state) {
  check_shapes(u, delta, A, B, C, D, z, delta_bias, initial_state);
  bool float32 = u.is_cpu();
  for (const Optional& t :
       {Optional(u), Optional(delta), Optional(A), Optional(B), Optional(C), D, z, delta_bias, initial_state}) {
    float32 = float32 && (!t || widened(*t).scalar_type() == torch::kFloat32);
  }
  const auto run = fused_enabled() && float32 ? fused : reference;
  return run(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state);
}

TORCH_LIBRARY_FRAGMENT(seqloom, m) {
  m.def(
      "selective_scan(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D=None, Tensor? z=None, Tensor? "
      "delta_bias=None, bool delta_softplus=False, Tensor? initial_state=None) -> (Tensor, Tensor)",
      &selective_scan);
}

}  // namespace seqloom::ops
