#include "ops/selective_scan_step.h"

#include <fmt/ostream.h>
#include <torch/library.h>

#include "base/error.h"
#include "ops/cpu/selective_scan_step.h"
#include "ops/fused.h"
#include "ops/operator.h"
#include "ops/precision.h"
#include "ops/reference_gradient.h"
#include "ops/step_states.h"

namespace seqloom::ops {
namespace {

using torch::Tensor;
using Optional = std::optional<Tensor>;

void check_shapes(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B, const Tensor& C,
                  const Optional& D, const Optional& z, const Optional& bias, at::TensorList states) {
  if (u.dim() != 2 || A.dim() != 2 || A.size(0) != u.size(1) || A.size(1) < 1 || A.is_complex()) {
    misuse("selective_scan_step: u {}, A {}: expected u [R, E] and A [E, N], real", fmt::streamed(u.sizes()),
           fmt::streamed(A.sizes()));
  }
  const auto check = [](const char* name, const Tensor& t, torch::IntArrayRef shape) {
    if (t.sizes() == shape) return;
    misuse("selective_scan_step: {} is {}, expected {}", name, fmt::streamed(t.sizes()), fmt::streamed(shape));
  };
  check("delta", delta, u.sizes());
  check("B", B, {u.size(0), A.size(1)});
  check("C", C, {u.size(0), A.size(1)});
  if (z) check("z", *z, u.sizes());
  if (D) check("D", *D, {u.size(1)});
  if (bias) check("delta_bias", *bias, {u.size(1)});
  check_states("selective_scan_step", states, u.size(0), {1, u.size(1), A.size(1)});
}

Tensor reference(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B, const Tensor& C,
                 const Optional& D, const Optional& z, const Optional& bias, bool softplus, at::TensorList states) {
  Tensor step = widened(delta);
  if (bias) step = step + widened(*bias);
  if (softplus) step = torch::softplus(step);
  std::vector<Tensor> rows;
  for (int64_t r = 0; r < u.size(0); ++r) {
    const Tensor decay = (step[r].unsqueeze(1) * widened(A)).exp();  // [E, N]
    const Tensor added = (step[r] * widened(u[r])).unsqueeze(1) * widened(B[r]);
    states[r][0].copy_(decay * states[r][0] + added);
    rows.push_back((states[r][0] * widened(C[r])).sum(1));
  }
  Tensor y = torch::stack(rows);
  if (D) y = y + widened(*D) * widened(u);
  if (z) y = y * torch::silu(widened(*z));
  return y.to(u.scalar_type());
}

}  // namespace

Tensor selective_scan_step(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B, const Tensor& C,
                           const Optional& D, const Optional& z, const Optional& delta_bias, bool delta_softplus,
                           at::TensorList states) {
  check_shapes(u, delta, A, B, C, D, z, delta_bias, states);
  if (u.numel() == 0) return u.clone();
  const auto given = [](const Optional& t) { return t.value_or(Tensor()); };
  const std::vector<Tensor> all = {u, delta, A, B, C, given(D), given(z), given(delta_bias)};
  if (!fusable(all) || wants_gradient(all) || !states_fusable(states, 1)) {
    return reference(u, delta, A, B, C, D, z, delta_bias, delta_softplus, states);
  }
  const auto rows = [](const Optional& t) { return t ? dense_rows_of(*t) : Tensor(); };
  const auto plain = [](const Optional& t) { return t ? widened(*t).contiguous() : Tensor(); };
  Tensor y = torch::empty(u.sizes(), widened(u).options());
  cpu::selective_scan_step({rows(u), rows(delta), rows(z), widened(A).t().contiguous(), rows(B), rows(C), plain(D),
                            plain(delta_bias), pointers_of(states), delta_softplus},
                           y);
  return y.to(u.scalar_type());
}

TORCH_LIBRARY_FRAGMENT(seqloom, m) {
  define_update(
      m,
      "selective_scan_step(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? "
      "delta_bias, bool delta_softplus, Tensor(a!)[] states) -> Tensor",
      &selective_scan_step);
}

}  // namespace seqloom::ops
