#include "ops/selective_state_update.h"

#include <fmt/ostream.h>
#include <torch/library.h>

#include <numeric>

#include "base/error.h"
#include "ops/cpu/selective_state_update.h"
#include "ops/fused.h"
#include "ops/operator.h"
#include "ops/precision.h"
#include "ops/state_rows.h"

namespace seqloom::ops {
namespace {

using torch::Tensor;
using Optional = std::optional<Tensor>;

void check_shape(const char* name, const Optional& t, torch::IntArrayRef shape) {
  if (!t || t->sizes() == shape) return;
  misuse("selective_state_update: {} is {}, expected {}", name, fmt::streamed(t->sizes()), fmt::streamed(shape));
}

/// All with heads: state [R, H, P, N], x [B, H, P], B, C [B, G, N].
void check_shapes(const Tensor& state, const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B,
                  const Tensor& C, const Optional& D, const Optional& z, const Optional& bias) {
  if (state.dim() != 4 || x.dim() != 3 || x.sizes().slice(1) != state.sizes().slice(1, 2)) {
    misuse("selective_state_update: state {}, x {}: expected state [B, H, P, N] and x [B, H, P]",
           fmt::streamed(state.sizes()), fmt::streamed(x.sizes()));
  }
  if (A.is_complex()) misuse("selective_state_update: A is complex, expected real rates");
  check_shape("dt", dt, x.sizes());
  check_shape("A", A, state.sizes().slice(1));
  check_shape("z", z, x.sizes());
  check_shape("D", D, x.sizes().slice(1));
  check_shape("dt_bias", bias, x.sizes().slice(1));
  if (B.dim() != 3 || B.size(0) != x.size(0) || B.size(2) != state.size(3) || B.size(1) < 1 ||
      x.size(1) % B.size(1) != 0) {
    misuse("selective_state_update: B is {}, expected [{}, G, {}] with G a divisor of {}", fmt::streamed(B.sizes()),
           x.size(0), state.size(3), x.size(1));
  }
  check_shape("C", C, B.sizes());
}

/// The states in `rows` of `state`, and y.
Tensor reference(const Tensor& state, const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B,
                 const Tensor& C, const Optional& D, const Optional& z, const Optional& bias, bool softplus,
                 const Tensor& rows) {
  const Tensor kept = rows >= 0, index = rows.clamp_min(0);
  const auto per_head = [&](const Tensor& m) {
    return widened(m).repeat_interleave(x.size(1) / m.size(1), 1).unsqueeze(2);
  };
  Tensor step = widened(dt);
  if (bias) step = step + widened(*bias);
  if (softplus) step = torch::softplus(step);
  const Tensor added = (step * widened(x)).unsqueeze(-1) * per_head(B);
  const Tensor decay = (step.unsqueeze(-1) * widened(A)).exp();
  const Tensor h = (decay * widened(state.index_select(0, index)) + added).to(state.scalar_type());
  Tensor y = (widened(h) * per_head(C)).sum(-1);
  if (D) y = y + widened(*D) * widened(x);
  if (z) y = y * torch::silu(widened(*z));
  const Tensor places = kept.nonzero().flatten();
  state.index_copy_(0, index.index_select(0, places), h.index_select(0, places));
  return y.masked_fill(kept.logical_not().view({-1, 1, 1}), 0);
}

/// Rates [H, P, N] with their states together, or not stored at all where they are the same for every state.
Tensor rates_of(const Tensor& A) {
  const Tensor wide = widened(A);
  if (wide.size(2) > 1 && wide.stride(2) == 0) return wide.select(2, 0).contiguous();
  return wide.contiguous();
}

Tensor fused(const Tensor& state, const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B, const Tensor& C,
             const Optional& D, const Optional& z, const Optional& bias, bool softplus,
             const std::vector<int64_t>& rows) {
  const auto plain = [](const Optional& t) { return t ? widened(*t).contiguous() : Tensor(); };
  Tensor held = state.contiguous();
  Tensor y = torch::empty(x.sizes(), widened(x).options().memory_format(at::MemoryFormat::Contiguous));
  cpu::selective_state_update(
      {plain(x), plain(dt), plain(z), rates_of(A), plain(B), plain(C), plain(D), plain(bias), rows, softplus}, held, y);
  if (!held.is_same(state)) state.copy_(held);
  return y;
}

}  // namespace

Tensor selective_state_update(const Tensor& state, const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B,
                              const Tensor& C, const Optional& D, const Optional& z, const Optional& dt_bias,
                              bool dt_softplus, const Optional& rows) {
  const at::NoGradGuard no_gradient;
  if (x.dim() == 2 && state.dim() == 3 && A.dim() == 2) {
    // Channels without heads: each group of B and C is a head of its own.
    const int64_t groups = B.dim() == 3 ? B.size(1) : 1;
    if (groups < 1 || x.size(1) % groups != 0) {
      misuse("selective_state_update: B is {}: its groups do not divide {} channels", fmt::streamed(B.sizes()),
             x.size(1));
    }
    const auto heads = [&](const Tensor& t, int64_t dim) { return t.unflatten(dim, {groups, -1}); };
    const auto optional = [&](const Optional& t, int64_t dim) { return t ? Optional(heads(*t, dim)) : std::nullopt; };
    const auto map = [](const Tensor& m) { return m.dim() == 2 ? m.unsqueeze(1) : m; };
    return selective_state_update(heads(state, 1), heads(x, 1), heads(dt, 1), heads(A, 0), map(B), map(C),
                                  optional(D, 0), optional(z, 1), optional(dt_bias, 0), dt_softplus, rows)
        .flatten(1);
  }
  if (B.dim() == 2 && C.dim() == 2) {
    return selective_state_update(state, x, dt, A, B.unsqueeze(1), C.unsqueeze(1), D, z, dt_bias, dt_softplus, rows);
  }
  check_shapes(state, x, dt, A, B, C, D, z, dt_bias);
  const auto places = state_rows(rows, x.size(0), state.size(0), "selective_state_update");
  const auto given = [](const Optional& t) { return t.value_or(Tensor()); };
  if (state.scalar_type() == torch::kFloat32 && fusable({state, x, dt, A, B, C, given(D), given(z), given(dt_bias)})) {
    return fused(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, places).to(x.scalar_type());
  }
  const Tensor index = torch::tensor(places, torch::kInt64).to(state.device());
  return reference(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, index).to(x.scalar_type());
}

TORCH_LIBRARY_FRAGMENT(seqloom, m) {
  define_update(
      m,
      "selective_state_update(Tensor(a!) state, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D=None, "
      "Tensor? z=None, Tensor? dt_bias=None, bool dt_softplus=False, Tensor? rows=None) -> Tensor",
      &selective_state_update);
}

}  // namespace seqloom::ops
