#include "ops/gated_linear_attention.h"

#include <fmt/ostream.h>

#include "base/error.h"
#include "ops/chunks.h"
#include "ops/cpu/gated_linear_attention.h"
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

void check_shapes(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& g,
                  const std::optional<Tensor>& state, int64_t sequences, int64_t chunk) {
  if (q.dim() != 4 || k.sizes() != q.sizes() || v.dim() != 4 || v.sizes().slice(0, 3) != q.sizes().slice(0, 3)) {
    misuse("gated_linear_attention: q {}, k {}, v {}: expected q, k [B, T, H, K] and v [B, T, H, V]",
           fmt::streamed(q.sizes()), fmt::streamed(k.sizes()), fmt::streamed(v.sizes()));
  }
  if (g && g->sizes() != q.sizes() && g->sizes() != q.sizes().slice(0, 3)) {
    misuse("gated_linear_attention: log_decay is {}, expected [B, T, H, K] or [B, T, H] of q {}",
           fmt::streamed(g->sizes()), fmt::streamed(q.sizes()));
  }
  const std::vector<int64_t> state_shape = {sequences, q.size(2), q.size(3), v.size(3)};
  if (state && state->sizes() != torch::IntArrayRef(state_shape)) {
    misuse(
        "gated_linear_attention: the initial state is {}, expected [B, H, K, V], or [S, H, K, V] of packed "
        "sequences, {}",
        fmt::streamed(state->sizes()), fmt::streamed(torch::IntArrayRef(state_shape)));
  }
  check_recurrence("gated_linear_attention", q, v, g, chunk);
}

Tensor lower_triangle(int64_t size, const Tensor& like) {
  return torch::ones({size, size}, like.options().dtype(torch::kBool)).tril();
}

/// A_ij = sum_d q_id k_jd e^{G_id - G_jd} for j <= i, 0 above; G [..., C, K] is the cumulative log decay, inclusive.
/// With |G| small the exponents are centred and one product suffices.
Tensor centred_scores(const Tensor& q, const Tensor& k, const Tensor& decay) {
  const Tensor middle = decay.narrow(-2, decay.size(-2) - 1, 1) / 2;
  const Tensor scores = torch::matmul(q * (decay - middle).exp(), (k * (middle - decay).exp()).transpose(-1, -2));
  return torch::where(lower_triangle(q.size(-2), q), scores, torch::zeros({}, scores.options()));
}

/// The same for decay of any strength. Blocks of 16 rows: against earlier blocks both factors are taken relative to the
/// row before the block, so that no exponent is positive; inside the block differences are formed one by one.
Tensor blocked_scores(const Tensor& q, const Tensor& k, const Tensor& decay) {
  const int64_t chunk = q.size(-2), block = std::min<int64_t>(16, chunk);
  const auto type = q.scalar_type();
  std::vector<Tensor> rows;
  for (int64_t begin = 0; begin < chunk; begin += block) {
    const int64_t size = std::min(block, chunk - begin);
    const Tensor q_rows = q.narrow(-2, begin, size), own = decay.narrow(-2, begin, size);
    // [..., i, j, K], the largest tensor here, never is float64: whole parts subtract exactly in the type of q too
    const Tensor whole = own.detach().round(), rest = (own - whole).to(type), steps = whole.to(type);
    const Tensor difference = (rest.unsqueeze(-2) - rest.unsqueeze(-3)).add_(steps.unsqueeze(-2) - steps.unsqueeze(-3));
    // masked before exp: above the diagonal differences are positive, and inf * 0 would poison the gradient
    const Tensor above = lower_triangle(size, q).logical_not().unsqueeze(-1);
    const Tensor ratio = difference.masked_fill_(above, -INFINITY).exp_();
    Tensor diagonal = (q_rows.unsqueeze(-2) * k.narrow(-2, begin, size).unsqueeze(-3) * ratio).sum(-1);
    std::vector<Tensor> parts;
    if (begin > 0) {
      const Tensor reference = decay.narrow(-2, begin - 1, 1);
      const Tensor earlier = k.narrow(-2, 0, begin) * (reference - decay.narrow(-2, 0, begin)).to(type).exp();
      parts.push_back(torch::matmul(q_rows * (own - reference).to(type).exp(), earlier.transpose(-1, -2)));
    }
    parts.push_back(diagonal);
    auto empty = q.sizes().vec();
    empty[empty.size() - 2] = size;
    empty.back() = chunk - begin - size;
    if (empty.back() > 0) parts.push_back(torch::zeros(empty, q.options()));
    rows.push_back(torch::cat(parts, -1));
  }
  return torch::cat(rows, -2);
}

Tensor scores(const Tensor& q, const Tensor& k, const std::optional<CumulativeGates>& decay) {
  if (!decay) return torch::matmul(q, k.transpose(-1, -2)).tril();
  if (decay->sums.size(-1) == 1) {
    const Tensor g = decay->sums.squeeze(-1);
    const Tensor difference = (g.unsqueeze(-1) - g.unsqueeze(-2)).to(q.scalar_type());
    const Tensor ratio = difference.masked_fill_(lower_triangle(q.size(-2), q).logical_not(), -INFINITY).exp_();
    return torch::matmul(q, k.transpose(-1, -2)) * ratio;
  }
  return decay->mild ? centred_scores(q, k, decay->sums) : blocked_scores(q, k, decay->sums);
}

/// The definition, once: what a chunk of one token costs in set-up is several times its arithmetic.
std::tuple<Tensor, Tensor> one_token(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& g,
                                     double scale, Tensor state) {
  if (g) {
    const Tensor gate = widened(*g);
    state = state * (gate.dim() == 4 ? gate.permute({0, 2, 3, 1}) : gate.transpose(1, 2).unsqueeze(-1)).exp();
  }
  state = torch::addcmul(state, widened(k).permute({0, 2, 3, 1}), widened(v).transpose(1, 2));
  const Tensor o = torch::matmul(widened(q).transpose(1, 2) * scale, state);  // [B, H, 1, V]
  return {o.transpose(1, 2).to(v.scalar_type()), state};
}

std::tuple<Tensor, Tensor> in_chunks(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& g,
                                     double scale, const Tensor& state, int64_t chunk) {
  const int64_t tokens = q.size(1), size = std::min(chunk, tokens);
  const Tensor qc = to_chunks(widened(q), size) * scale;  // [B, H, N, C, K]
  const Tensor kc = to_chunks(widened(k), size), vc = to_chunks(widened(v), size);
  Tensor q_in = qc, k_out = kc;
  Tensor chunk_decay = torch::ones({1, 1, kc.size(2), 1, 1}, kc.options());
  std::optional<CumulativeGates> decay;  // [B, H, N, C, K or 1]
  if (g) {
    const Tensor gates = to_chunks(widened(*g), size);
    decay = cumulative_gates(gates.dim() == 4 ? gates.unsqueeze(-1) : gates, -2);
    const auto factor = [&](const Tensor& exponent) { return exponent.to(qc.scalar_type()).exp(); };
    const Tensor total = decay->sums.narrow(-2, size - 1, 1);
    q_in = qc * factor(decay->sums);
    k_out = kc * factor(total - decay->sums);
    chunk_decay = factor(total).transpose(-1, -2);  // [B, H, N, K or 1, 1]
  }
  const Tensor added = torch::matmul(k_out.transpose(-1, -2), vc);
  const auto [before, last] = scan_chunk_states(chunk_decay, added, state);
  const Tensor o = torch::matmul(scores(qc, kc, decay), vc) + torch::matmul(q_in, before);
  return {from_chunks(o, tokens).to(v.scalar_type()), last};
}

std::tuple<Tensor, Tensor> dense_reference(const Tensor& q, const Tensor& k, const Tensor& v,
                                           const std::optional<Tensor>& g, double scale, const Tensor& state,
                                           int64_t chunk) {
  if (q.size(1) == 0) return {v, state};
  return q.size(1) == 1 ? one_token(q, k, v, g, scale, state) : in_chunks(q, k, v, g, scale, state, chunk);
}

/// Packed sequences one by one; offsets are undefined without.
std::tuple<Tensor, Tensor> reference(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& g,
                                     double scale, const Tensor& state, int64_t chunk, const Tensor& offsets) {
  if (!offsets.defined()) return dense_reference(q, k, v, g, scale, state, chunk);
  const auto parts = [&](const Tensor& t) { return split_sequences(t, offsets, 1); };
  const auto qs = parts(q), ks = parts(k), vs = parts(v), gates = g ? parts(*g) : qs, before = state.split(1, 0);
  std::vector<Tensor> os, states;
  for (size_t s = 0; s < qs.size(); ++s) {
    const auto gate = g ? std::make_optional(gates[s]) : std::nullopt;
    const auto [o, last] = dense_reference(qs[s], ks[s], vs[s], gate, scale, before[s], chunk);
    os.push_back(o);
    states.push_back(last);
  }
  return {torch::cat(os, 1), torch::cat(states, 0)};
}

Tensor zero_state(const Tensor& q, const Tensor& v, const Tensor& offsets) {
  return torch::zeros({count_sequences(q, offsets), q.size(2), q.size(3), v.size(3)}, widened(q).options());
}

/// The fused kernel with its gradient, float32 or bfloat16 each with a contiguous last dimension; states float32.
class FusedGla : public torch::autograd::Function<FusedGla> {
 public:
  static variable_list forward(AutogradContext* context, const Tensor& q, const Tensor& k, const Tensor& v,
                               const std::optional<Tensor>& gate, const std::optional<Tensor>& state,
                               const std::optional<Tensor>& offsets, double scale, bool needs_gradient) {
    const Tensor cuts = offsets.value_or(Tensor()), none;
    const cpu::GlaInputs in{
        q, k, v, gate.value_or(none), state.value_or(none), scale, cuts.defined() ? to_vector(cuts) : Cuts()};
    const cpu::GlaOutputs out = cpu::gated_linear_attention_forward(in, needs_gradient);
    context->save_for_backward({in.q, in.k, in.v, in.gate, in.state, cuts, out.checkpoints, out.last});
    context->saved_data["scale"] = scale;
    context->set_materialize_grads(false);  // a last state that nobody uses costs nothing
    return {out.o, out.state};
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto s = context->get_saved_variables();
    const double scale = context->saved_data["scale"].toDouble();
    const Tensor d_o = gradients[0].defined() ? gradients[0].contiguous() : torch::zeros(s[2].sizes(), s[2].options());
    if (torch::GradMode::is_enabled()) return through_reference(s, scale, d_o, gradients[1]);
    const cpu::GlaInputs in{s[0], s[1], s[2], s[3], s[4], scale, s[5].defined() ? to_vector(s[5]) : Cuts()};
    const Tensor d_state = gradients[1].defined() ? gradients[1].contiguous() : Tensor();
    const auto g =
        cpu::gated_linear_attention_backward(in, s[6], s[7], d_o, d_state, s[4].defined() && s[4].requires_grad());
    return {g.q, g.k, g.v, g.gate, g.state, Tensor(), Tensor(), Tensor()};
  }

 private:
  using Cuts = std::vector<int64_t>;

  static variable_list through_reference(const variable_list& s, double scale, const Tensor& d_o,
                                         const Tensor& d_state) {
    const auto gate = s[3].defined() ? std::make_optional<Tensor>(s[3]) : std::nullopt;
    const Tensor start = s[4].defined() ? s[4] : zero_state(s[0], s[2], s[5]);
    const auto [o, state] = reference(s[0], s[1], s[2], gate, scale, start, /*chunk=*/64, s[5]);
    const Tensor d_last = d_state.defined() ? d_state : torch::zeros_like(state);
    variable_list all = reference_gradients({o, state}, variable_list(s.begin(), s.begin() + 5), {d_o, d_last});
    all.resize(8);
    return all;
  }
};

std::tuple<Tensor, Tensor> fused(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& g,
                                 double scale, const std::optional<Tensor>& initial_state, const Tensor& offsets) {
  const auto gate = g ? std::make_optional(with_rows(*g)) : std::nullopt;
  const auto state = initial_state ? std::make_optional(widened(*initial_state)) : std::nullopt;
  const auto cuts = offsets.defined() ? std::make_optional(offsets) : std::nullopt;
  const bool needs_gradient = wants_gradient({q, k, v, g.value_or(Tensor()), state.value_or(Tensor())});
  const auto out = FusedGla::apply(with_rows(q), with_rows(k), with_rows(v), gate, state, cuts, scale, needs_gradient);
  return {out[0].to(v.scalar_type()), out[1]};
}

std::tuple<Tensor, Tensor> evaluate(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& g,
                                    double scale, const std::optional<Tensor>& initial_state, int64_t chunk,
                                    const Tensor& offsets) {
  if (fusable({q, k, v, g.value_or(Tensor()), initial_state.value_or(Tensor())})) {
    return fused(q, k, v, g, scale, initial_state, offsets);
  }
  const Tensor state = initial_state ? widened(*initial_state) : zero_state(q, v, offsets);
  return reference(q, k, v, g, scale, state, chunk, offsets);
}

}  // namespace

std::tuple<Tensor, Tensor> gated_linear_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                                  const std::optional<Tensor>& log_decay, double scale,
                                                  const std::optional<Tensor>& initial_state,
                                                  const std::optional<Tensor>& cu_seqlens, int64_t chunk) {
  const Tensor offsets = packed_offsets("gated_linear_attention", q, cu_seqlens);
  check_shapes(q, k, v, log_decay, initial_state, count_sequences(q, offsets), chunk);
  return evaluate(q, k, v, log_decay, scale, initial_state, chunk, offsets);
}

std::tuple<Tensor, Tensor, Tensor> normalized_gated_linear_attention(
    const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& log_decay, double scale, double eps,
    const std::optional<Tensor>& initial_state, const std::optional<Tensor>& initial_z,
    const std::optional<Tensor>& cu_seqlens, int64_t chunk) {
  const Tensor offsets = packed_offsets("gated_linear_attention", q, cu_seqlens);
  const int64_t sequences = count_sequences(q, offsets);
  check_shapes(q, k, v, log_decay, initial_state, sequences, chunk);
  if (initial_z && initial_z->sizes() != torch::IntArrayRef({sequences, q.size(2), q.size(3)})) {
    misuse("normalized_gated_linear_attention: the initial z is {}, expected [B, H, K] of q {}",
           fmt::streamed(initial_z->sizes()), fmt::streamed(q.sizes()));
  }
  // z is the state of a value that is always one: a column more of S.
  auto column = v.sizes().vec();
  column.back() = 1;
  const Tensor wide = widened(v), values = torch::cat({wide, torch::ones(column, wide.options())}, -1);
  std::optional<Tensor> start;
  if (initial_state || initial_z) {
    const Tensor zero = torch::zeros({sequences, q.size(2), q.size(3), v.size(3) + 1}, values.options());
    start = torch::cat({initial_state ? widened(*initial_state) : zero.narrow(-1, 0, v.size(3)),
                        initial_z ? widened(*initial_z).unsqueeze(-1) : zero.narrow(-1, 0, 1)},
                       -1);
  }
  const auto [o, state] = evaluate(q, k, values, log_decay, scale, start, chunk, offsets);
  const Tensor normalized = o.narrow(-1, 0, v.size(3)) / (o.narrow(-1, v.size(3), 1) + eps);
  return {normalized.to(v.scalar_type()), state.narrow(-1, 0, v.size(3)), state.select(-1, v.size(3))};
}

Tensor gated_linear_attention_matrix(const Tensor& q, const Tensor& k, const std::optional<Tensor>& log_decay,
                                     double scale) {
  check_shapes(q, k, /*v=*/k, log_decay, {}, /*sequences=*/0, /*chunk=*/1);
  const Tensor qh = widened(q).transpose(1, 2) * scale, kh = widened(k).transpose(1, 2);
  std::optional<CumulativeGates> decay;
  if (log_decay) {
    const Tensor g = widened(*log_decay).transpose(1, 2);
    decay = cumulative_gates(g.dim() == 3 ? g.unsqueeze(-1) : g, -2);
  }
  return scores(qh, kh, decay);
}

TORCH_LIBRARY_FRAGMENT(seqloom, m) {
  define(m,
         "gated_linear_attention(Tensor q, Tensor k, Tensor v, Tensor? log_decay=None, float scale=1.0, Tensor? "
         "initial_state=None, Tensor? cu_seqlens=None, int chunk=64) -> (Tensor, Tensor)",
         &gated_linear_attention);
  define(
      m,
      "normalized_gated_linear_attention(Tensor q, Tensor k, Tensor v, Tensor? log_decay=None, float scale=1.0, float "
      "eps=1e-6, Tensor? initial_state=None, Tensor? initial_z=None, Tensor? cu_seqlens=None, int chunk=64) -> "
      "(Tensor, "
      "Tensor, Tensor)",
      &normalized_gated_linear_attention);
}

}  // namespace seqloom::ops
