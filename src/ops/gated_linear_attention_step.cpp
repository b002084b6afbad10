#include "ops/gated_linear_attention_step.h"

#include <fmt/ostream.h>
#include <torch/library.h>

#include "base/error.h"
#include "ops/cpu/gated_linear_attention_step.h"
#include "ops/fused.h"
#include "ops/operator.h"
#include "ops/precision.h"
#include "ops/reference_gradient.h"
#include "ops/step_states.h"

namespace seqloom::ops {
namespace {

using torch::Tensor;
using Optional = std::optional<Tensor>;

void check_shapes(const Tensor& q, const Tensor& k, const Tensor& v, const Optional& g, at::TensorList states) {
  const bool fits = q.dim() == 3 && k.sizes() == q.sizes() && v.dim() == 3 && v.size(0) == q.size(0) && q.size(1) > 0 &&
                    v.size(1) % q.size(1) == 0;
  if (!fits) {
    misuse("gated_linear_attention_step: q {}, k {}, v {}: expected q, k [R, G, K] and v [R, H, V] where G divides H",
           fmt::streamed(q.sizes()), fmt::streamed(k.sizes()), fmt::streamed(v.sizes()));
  }
  const std::vector<int64_t> gate = {v.size(0), v.size(1), q.size(2)};
  if (g && g->sizes() != torch::IntArrayRef(gate) && g->sizes() != torch::IntArrayRef(gate).slice(0, 2)) {
    misuse("gated_linear_attention_step: log_decay is {}, expected [R, H, K] or [R, H] of {}",
           fmt::streamed(g->sizes()), fmt::streamed(torch::IntArrayRef(gate)));
  }
  check_states("gated_linear_attention_step", states, v.size(0), {1, v.size(1), q.size(2), v.size(2)});
}

Tensor reference(const Tensor& q, const Tensor& k, const Tensor& v, const Optional& g, double scale,
                 at::TensorList states) {
  const int64_t share = v.size(1) / q.size(1);
  const auto per_head = [&](const Tensor& t) { return widened(t).repeat_interleave(share, 1); };
  const Tensor queries = per_head(q) * scale, keys = per_head(k), values = widened(v);
  std::vector<Tensor> rows;
  for (int64_t r = 0; r < v.size(0); ++r) {
    const Tensor state = states[r][0];  // [H, K, V]
    Tensor kept = state;
    if (g) kept = state * widened(*g)[r].exp().view({v.size(1), -1, 1});
    state.copy_(kept + keys[r].unsqueeze(2) * values[r].unsqueeze(1));
    rows.push_back((state * queries[r].unsqueeze(2)).sum(1));
  }
  return torch::stack(rows).to(v.scalar_type());
}

}  // namespace

Tensor gated_linear_attention_step(const Tensor& q, const Tensor& k, const Tensor& v, const Optional& log_decay,
                                   double scale, at::TensorList states) {
  check_shapes(q, k, v, log_decay, states);
  if (v.numel() == 0) return v.clone();
  const std::vector<Tensor> all = {q, k, v, log_decay.value_or(Tensor())};
  if (!fusable(all) || wants_gradient(all) || !states_fusable(states, 3)) {
    return reference(q, k, v, log_decay, scale, states);
  }
  const Tensor decay = log_decay ? widened(*log_decay).contiguous() : Tensor();
  Tensor o = torch::empty(v.sizes(), widened(v).options());
  cpu::gated_linear_attention_step(
      {dense_rows_of(q), dense_rows_of(k), dense_rows_of(v), decay, pointers_of(states), scale}, o);
  return o.to(v.scalar_type());
}

TORCH_LIBRARY_FRAGMENT(seqloom, m) {
  define_update(
      m,
      "gated_linear_attention_step(Tensor q, Tensor k, Tensor v, Tensor? log_decay, float scale, Tensor(a!)[] states) "
      "-> Tensor",
      &gated_linear_attention_step);
}

}  // namespace seqloom::ops
