#include "ops/selective_scan.h"

#include <fmt/ostream.h>

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "ops/affine_scan.h"
#include "ops/cpu/selective_scan.h"
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
                  const Optional& D, const Optional& z, const Optional& bias, const Optional& state,
                  int64_t sequences) {
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
  if (state) same("the initial state", *state, {sequences, u.size(1), A.size(1)});
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

/// The reference for each packed sequence by itself.
std::tuple<Tensor, Tensor> packed_reference(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B,
                                            const Tensor& C, const Optional& D, const Optional& z, const Optional& bias,
                                            bool softplus, const Optional& initial_state, const Tensor& cu_seqlens) {
  const auto parts = [&](const Tensor& t) { return split_sequences(t, cu_seqlens, -1); };
  const auto maps = [&](const Tensor& m) {
    return m.dim() == 2 ? std::vector<Tensor>(cu_seqlens.size(0) - 1, m) : parts(m);
  };
  const auto us = parts(u), deltas = parts(delta), Bs = maps(B), Cs = maps(C), zs = z ? parts(*z) : us;
  std::vector<Tensor> ys, states;
  for (size_t s = 0; s < us.size(); ++s) {
    const auto row = static_cast<int64_t>(s);
    const Optional state = initial_state ? Optional(initial_state->narrow(0, row, 1)) : std::nullopt;
    if (us[s].size(2) == 0) {
      states.push_back(state ? widened(*state) : torch::zeros({1, u.size(1), A.size(1)}, widened(A).options()));
      continue;
    }
    const auto [y, last] =
        reference(us[s], deltas[s], A, Bs[s], Cs[s], D, z ? Optional(zs[s]) : std::nullopt, bias, softplus, state);
    ys.push_back(y);
    states.push_back(last);
  }
  return {torch::cat(ys, 2), torch::cat(states, 0)};
}

int64_t groups_of(const Tensor& m) {
  return m.dim() == 4 ? m.size(1) : 1;
}

/// B or C in the kernel's layout: [N, E] when constant, else [B T, G, N] with `groups` groups.
Tensor kernel_map(const Tensor& m, int64_t groups) {
  if (m.dim() == 2) return m.t().contiguous();
  Tensor grouped = m.dim() == 3 ? m.unsqueeze(1) : m;
  if (grouped.size(1) < groups) grouped = grouped.repeat_interleave(groups / grouped.size(1), 1);
  return grouped.permute({0, 3, 1, 2}).flatten(0, 1).contiguous();
}

/// y and the final states by the reference, from and in the kernel's layouts: u, delta, z, A, B, C, D, bias, state.
variable_list by_reference(const variable_list& s, bool softplus, const Tensor& cu_seqlens) {
  const auto optional = [](const Tensor& t) { return t.defined() ? Optional(t) : std::nullopt; };
  const auto map = [](const Tensor& m) { return m.dim() == 2 ? m.t() : m.permute({1, 2, 0}).unsqueeze(0); };
  const auto channels = [](const Tensor& rows) { return rows.t().unsqueeze(0); };
  const Optional z = s[2].defined() ? Optional(channels(s[2])) : std::nullopt;
  const auto [y, state] =
      packed_reference(channels(s[0]), channels(s[1]), s[3].t(), map(s[4]), map(s[5]), optional(s[6]), z,
                       optional(s[7]), softplus, s[8].transpose(1, 2), cu_seqlens);
  return {y.squeeze(0).t(), state.transpose(1, 2)};
}

/// The fused kernel with its gradient, in the kernel's layouts: u, delta, A, B, C, D, z, bias, state.
class FusedScan : public torch::autograd::Function<FusedScan> {
 public:
  static variable_list forward(AutogradContext* context, const Tensor& u, const Tensor& delta, const Tensor& A,
                               const Tensor& B, const Tensor& C, const Optional& D, const Optional& z,
                               const Optional& bias, const Tensor& state, const Tensor& cu_seqlens, bool softplus,
                               bool needs_gradient) {
    const cpu::ScanInputs in{u,
                             delta,
                             z.value_or(Tensor()),
                             A,
                             B,
                             C,
                             D.value_or(Tensor()),
                             bias.value_or(Tensor()),
                             state,
                             to_vector(cu_seqlens),
                             softplus};
    const cpu::ScanOutputs out = cpu::selective_scan_forward(in, needs_gradient);
    context->save_for_backward(
        {in.u, in.delta, in.z, in.A, in.B, in.C, in.D, in.bias, in.state, out.checkpoints, cu_seqlens});
    context->saved_data["softplus"] = softplus;
    return {out.y, out.state};
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto s = context->get_saved_variables();
    const bool softplus = context->saved_data["softplus"].toBool();
    const Tensor none;
    if (torch::GradMode::is_enabled()) {
      variable_list all =
          reference_gradients(by_reference(s, softplus, s[10]), variable_list(s.begin(), s.begin() + 9), gradients);
      // saved as u, delta, z, A, B, C, D, bias, state; taken as u, delta, A, B, C, D, z, bias, state
      return {all[0], all[1], all[3], all[4], all[5], all[6], all[2], all[7], all[8], none, none, none};
    }
    const cpu::ScanInputs in{s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], to_vector(s[10]), softplus};
    const Tensor dy = gradients[0].stride(1) == 1 ? gradients[0] : gradients[0].contiguous();
    const auto g = cpu::selective_scan_backward(in, s[9], dy, gradients[1].contiguous());
    return {g.u, g.delta, g.A, g.B, g.C, g.D, g.z, g.bias, g.state, none, none, none};
  }
};

std::tuple<Tensor, Tensor> fused(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B,
                                 const Tensor& C, const Optional& D, const Optional& z, const Optional& bias,
                                 bool softplus, const Optional& initial_state, const Tensor& cu_seqlens) {
  // Bfloat16 is read as it is where all that is as long as the sequence has it.
  const bool narrow = u.scalar_type() == torch::kBFloat16 && delta.scalar_type() == torch::kBFloat16 &&
                      (!z || z->scalar_type() == torch::kBFloat16);
  const auto rows = [&](const Tensor& t) { return channel_rows(narrow ? t : widened(t)); };
  const auto wide = [](const Optional& t) { return t ? std::make_optional(widened(*t).contiguous()) : std::nullopt; };
  const Tensor state = initial_state
                           ? widened(*initial_state).transpose(1, 2).contiguous()
                           : torch::zeros({cu_seqlens.size(0) - 1, A.size(1), u.size(1)}, widened(A).options());
  const int64_t groups = std::lcm(groups_of(B), groups_of(C));
  const auto given = [](const Optional& t) { return t.value_or(Tensor()); };
  const bool needs_gradient = wants_gradient({u, delta, A, B, C, given(D), given(z), given(bias), state});
  const auto out =
      FusedScan::apply(rows(u), rows(delta), widened(A).t().contiguous(), kernel_map(widened(B), groups),
                       kernel_map(widened(C), groups), wide(D), z ? std::make_optional(rows(*z)) : std::nullopt,
                       wide(bias), state, cu_seqlens, softplus, needs_gradient);
  const Tensor y = out[0].view({u.size(0), u.size(2), u.size(1)}).transpose(1, 2);
  return {y.to(u.scalar_type()), out[1].transpose(1, 2)};
}

}  // namespace

std::tuple<Tensor, Tensor> selective_scan(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B,
                                          const Tensor& C, const Optional& D, const Optional& z,
                                          const Optional& delta_bias, bool delta_softplus,
                                          const Optional& initial_state, const Optional& cu_seqlens) {
  if (cu_seqlens && (u.dim() != 3 || u.size(0) != 1)) {
    misuse("selective_scan: u is {}, expected packed sequences [1, E, T] beside cu_seqlens", fmt::streamed(u.sizes()));
  }
  Tensor offsets;
  if (cu_seqlens) offsets = checked_offsets(*cu_seqlens, u.size(2), "selective_scan: cu_seqlens");
  const int64_t sequences = cu_seqlens ? offsets.size(0) - 1 : u.dim() > 0 ? u.size(0) : 0;
  check_shapes(u, delta, A, B, C, D, z, delta_bias, initial_state, sequences);
  if (!cu_seqlens) offsets = dense_offsets(u.size(0), u.size(2));
  const auto given = [](const Optional& t) { return t.value_or(Tensor()); };
  if (fusable({u, delta, A, B, C, given(D), given(z), given(delta_bias), given(initial_state)})) {
    return fused(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, offsets);
  }
  if (!cu_seqlens) return reference(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state);
  return packed_reference(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, offsets);
}

TORCH_LIBRARY_FRAGMENT(seqloom, m) {
  define(m,
         "selective_scan(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D=None, Tensor? z=None, Tensor? "
         "delta_bias=None, bool delta_softplus=False, Tensor? initial_state=None, Tensor? cu_seqlens=None) -> (Tensor, "
         "Tensor)",
         &selective_scan, {.transposed = {true, true}});
}

}  // namespace seqloom::ops
