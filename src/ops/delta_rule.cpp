#include "ops/delta_rule.h"

#include <fmt/ostream.h>

#include "base/error.h"
#include "ops/chunks.h"
#include "ops/cpu/delta_rule.h"
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

void check_shapes(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& beta, const std::optional<Tensor>& g,
                  const std::optional<Tensor>& state, int64_t sequences, int64_t chunk) {
  if (q.dim() != 4 || k.sizes() != q.sizes() || v.dim() != 4 || v.sizes().slice(0, 3) != q.sizes().slice(0, 3)) {
    misuse("delta_rule: q {}, k {}, v {}: expected q, k [B, T, H, K] and v [B, T, H, V]", fmt::streamed(q.sizes()),
           fmt::streamed(k.sizes()), fmt::streamed(v.sizes()));
  }
  for (const auto& [name, t] : {std::pair<const char*, std::optional<Tensor>>{"beta", beta}, {"log_decay", g}}) {
    if (t && t->sizes() != q.sizes().slice(0, 3)) {
      misuse("delta_rule: {} is {}, expected [B, T, H] of q {}", name, fmt::streamed(t->sizes()),
             fmt::streamed(q.sizes()));
    }
  }
  const std::vector<int64_t> shape = {sequences, q.size(2), q.size(3), v.size(3)};
  if (state && state->sizes() != torch::IntArrayRef(shape)) {
    misuse("delta_rule: the initial state is {}, expected [B, H, K, V], or [S, H, K, V] of packed sequences, {}",
           fmt::streamed(state->sizes()), fmt::streamed(torch::IntArrayRef(shape)));
  }
  check_recurrence("delta_rule", q, v, g, chunk);
}

/// The definition, once: what a chunk of one token costs in set-up is several times its arithmetic.
std::tuple<Tensor, Tensor> one_token(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& beta,
                                     const std::optional<Tensor>& g, double scale, Tensor state) {
  const auto by_head = [](const Tensor& x) { return widened(x).transpose(1, 2); };  // [B, 1, H, ..] -> [B, H, 1, ..]
  const Tensor key = by_head(k);
  if (g) state = state * by_head(*g).unsqueeze(-1).exp();
  const Tensor written = by_head(beta).unsqueeze(-1) * (by_head(v) - torch::matmul(key, state));
  state = torch::addcmul(state, key.transpose(-1, -2), written);
  const Tensor o = torch::matmul(by_head(q) * scale, state);  // [B, H, 1, V]
  return {o.transpose(1, 2).to(v.scalar_type()), state};
}

/// The factors e^{...} of a chunk, all exponents <= 0.
struct Decay {
  Tensor ratio;       ///< e^{G_i - G_j} for j <= i, 0 above [B, H, N, C, C], or [C, C] without gates
  Tensor from_start;  ///< e^G [B, H, N, C, 1]; this and the next ones undefined without gates
  Tensor to_end;      ///< e^{G_C - G} [B, H, N, C, 1]
  Tensor total;       ///< e^{G_C} [B, H, N, 1, 1]
};

Decay decay_in_chunks(const std::optional<Tensor>& g, int64_t size, const Tensor& like) {
  if (!g) return {torch::ones({size, size}, like.options()).tril(), {}, {}, {}};
  const auto type = like.scalar_type();
  const Tensor G = cumulative_gates(to_chunks(widened(*g), size), -1).sums;  // [B, H, N, C]
  const Tensor last = G.narrow(-1, size - 1, 1), difference = (G.unsqueeze(-1) - G.unsqueeze(-2)).to(type);
  const Tensor above = torch::ones({size, size}, like.options().dtype(torch::kBool)).triu(1);
  const auto factor = [&](const Tensor& exponent) { return exponent.to(type).exp().unsqueeze(-1); };
  return {difference.masked_fill_(above, -INFINITY).exp_(), factor(G), factor(last - G), factor(last)};
}

std::tuple<Tensor, Tensor> in_chunks(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& beta,
                                     const std::optional<Tensor>& g, double scale, const Tensor& state, int64_t chunk) {
  const int64_t tokens = q.size(1), size = std::min(chunk, tokens);
  const Tensor qc = to_chunks(widened(q), size) * scale, kc = to_chunks(widened(k), size);  // [B, H, N, C, K]
  const Tensor vc = to_chunks(widened(v), size);
  const Tensor write = to_chunks(widened(beta), size).unsqueeze(-1);  // [B, H, N, C, 1]
  const auto [ratio, from_start, to_end, total] = decay_in_chunks(g, size, qc);

  // (I + L) [U | W] = diag(beta) [V | K e^G], L_ij = beta_i (k_i . k_j) e^{G_i - G_j} for j < i
  const Tensor L = (write * torch::matmul(kc, kc.transpose(-1, -2)) * ratio).tril(-1);
  const Tensor right = write * torch::cat({vc, g ? kc * from_start : kc}, -1);
  const Tensor solved =
      torch::linalg_solve_triangular(L, right, /*upper=*/false, /*left=*/true, /*unitriangular=*/true);
  const auto U = solved.narrow(-1, 0, v.size(3)).unbind(2), W = solved.narrow(-1, v.size(3), k.size(3)).unbind(2);
  const Tensor scores = torch::matmul(qc, kc.transpose(-1, -2)) * ratio;
  const auto A = scores.unbind(2), q_in = (g ? qc * from_start : qc).unbind(2);
  const auto k_out = (g ? kc * to_end : kc).transpose(-1, -2).unbind(2);
  const auto decay = g ? total.unbind(2) : std::vector<Tensor>();

  Tensor S = state;
  std::vector<Tensor> outputs;
  for (size_t c = 0; c < U.size(); ++c) {
    const Tensor written = U[c] - torch::matmul(W[c], S);
    outputs.push_back(torch::matmul(q_in[c], S) + torch::matmul(A[c], written));
    S = (g ? S * decay[c] : S) + torch::matmul(k_out[c], written);
  }
  return {from_chunks(torch::stack(outputs, 2), tokens).to(v.scalar_type()), S};
}

std::tuple<Tensor, Tensor> dense_reference(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& beta,
                                           const std::optional<Tensor>& g, double scale, const Tensor& state,
                                           int64_t chunk) {
  if (q.size(1) == 0) return {v, state};
  return q.size(1) == 1 ? one_token(q, k, v, beta, g, scale, state) : in_chunks(q, k, v, beta, g, scale, state, chunk);
}

/// Packed sequences one by one; offsets are undefined without.
std::tuple<Tensor, Tensor> reference(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& beta,
                                     const std::optional<Tensor>& g, double scale, const Tensor& state, int64_t chunk,
                                     const Tensor& offsets) {
  if (!offsets.defined()) return dense_reference(q, k, v, beta, g, scale, state, chunk);
  const auto parts = [&](const Tensor& t) { return split_sequences(t, offsets, 1); };
  const auto qs = parts(q), ks = parts(k), vs = parts(v), betas = parts(beta), gates = g ? parts(*g) : qs;
  const auto before = state.split(1, 0);
  std::vector<Tensor> os, states;
  for (size_t s = 0; s < qs.size(); ++s) {
    const auto gate = g ? std::make_optional(gates[s]) : std::nullopt;
    const auto [o, last] = dense_reference(qs[s], ks[s], vs[s], betas[s], gate, scale, before[s], chunk);
    os.push_back(o);
    states.push_back(last);
  }
  return {torch::cat(os, 1), torch::cat(states, 0)};
}

/// The fused kernel with its gradient, float32 or bfloat16 each; q, k and v with a contiguous last dimension.
class FusedDelta : public torch::autograd::Function<FusedDelta> {
 public:
  static variable_list forward(AutogradContext* context, const Tensor& q, const Tensor& k, const Tensor& v,
                               const Tensor& beta, const std::optional<Tensor>& gate, const Tensor& state,
                               const std::optional<Tensor>& offsets, double scale, bool needs_gradient) {
    const Tensor cuts = offsets.value_or(Tensor());
    const cpu::DeltaInputs in{q, k, v, beta, gate.value_or(Tensor()), state, scale, numbers(cuts)};
    const cpu::DeltaOutputs out = cpu::delta_rule_forward(in, needs_gradient);
    if (needs_gradient) {
      context->save_for_backward({in.q, in.k, in.v, in.beta, in.gate, in.state, out.states, out.errors, cuts});
      context->saved_data["scale"] = scale;
    }
    return {out.o, out.state};
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto s = context->get_saved_variables();
    const double scale = context->saved_data["scale"].toDouble();
    const Tensor none;
    if (torch::GradMode::is_enabled()) {
      const auto gate = s[4].defined() ? std::make_optional<Tensor>(s[4]) : std::nullopt;
      const auto [o, state] = reference(s[0], s[1], s[2], s[3], gate, scale, s[5], /*chunk=*/64, s[8]);
      variable_list all = reference_gradients({o, state}, variable_list(s.begin(), s.begin() + 6), gradients);
      all.resize(9);
      return all;
    }
    const cpu::DeltaInputs in{s[0], s[1], s[2], s[3], s[4], s[5], scale, numbers(s[8])};
    const auto g = cpu::delta_rule_backward(in, s[6], s[7], gradients[0].contiguous(), gradients[1].contiguous());
    return {g.q, g.k, g.v, g.beta, g.gate, g.state, none, none, none};
  }

 private:
  static std::vector<int64_t> numbers(const Tensor& cuts) {
    return cuts.defined() ? to_vector(cuts) : std::vector<int64_t>();
  }
};

std::tuple<Tensor, Tensor> fused(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& beta,
                                 const std::optional<Tensor>& g, double scale, const Tensor& state,
                                 const Tensor& offsets) {
  const auto gate = g ? std::make_optional(with_numbers(*g)) : std::nullopt;
  const auto cuts = offsets.defined() ? std::make_optional(offsets) : std::nullopt;
  const auto out =
      FusedDelta::apply(with_rows(q), with_rows(k), with_rows(v), with_numbers(beta), gate, state.contiguous(), cuts,
                        scale, wants_gradient({q, k, v, beta, g.value_or(Tensor()), state}));
  return {out[0].to(v.scalar_type()), out[1]};
}

}  // namespace

std::tuple<Tensor, Tensor> delta_rule(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& beta,
                                      const std::optional<Tensor>& log_decay, double scale,
                                      const std::optional<Tensor>& initial_state,
                                      const std::optional<Tensor>& cu_seqlens, int64_t chunk) {
  const Tensor offsets = packed_offsets("delta_rule", q, cu_seqlens);
  const int64_t sequences = count_sequences(q, offsets);
  check_shapes(q, k, v, beta, log_decay, initial_state, sequences, chunk);
  const Tensor state = initial_state ? widened(*initial_state)
                                     : torch::zeros({sequences, q.size(2), q.size(3), v.size(3)}, widened(q).options());
  return fusable({q, k, v, beta, log_decay.value_or(Tensor()), state})
             ? fused(q, k, v, beta, log_decay, scale, state, offsets)
             : reference(q, k, v, beta, log_decay, scale, state, chunk, offsets);
}

TORCH_LIBRARY_FRAGMENT(seqloom, m) {
  define(m,
         "delta_rule(Tensor q, Tensor k, Tensor v, Tensor beta, Tensor? log_decay=None, float scale=1.0, Tensor? "
         "initial_state=None, Tensor? cu_seqlens=None, int chunk=64) -> (Tensor, Tensor)",
         &delta_rule);
}

}  // namespace seqloom::ops
