#include "ops/rwkv.h"

#include <fmt/ostream.h>

#include "base/error.h"
#include "ops/chunks.h"
#include "ops/gated_linear_attention.h"
#include "ops/operator.h"
#include "ops/packing.h"
#include "ops/precision.h"

namespace seqloom::ops {
namespace {

using torch::Tensor;

void check_shapes(const char* op, const Tensor& r, const std::vector<std::pair<const char*, Tensor>>& like_r,
                  const Tensor& v, const Tensor& w, const std::optional<Tensor>& state, int64_t sequences,
                  int64_t chunk) {
  if (r.dim() != 4 || v.dim() != 4 || v.sizes().slice(0, 3) != r.sizes().slice(0, 3)) {
    misuse("{}: r {}, v {}: expected r [B, T, H, K] and v [B, T, H, V]", op, fmt::streamed(r.sizes()),
           fmt::streamed(v.sizes()));
  }
  for (const auto& [name, tensor] : like_r) {
    if (tensor.sizes() != r.sizes()) {
      misuse("{}: {} is {}, expected [B, T, H, K] as r {}", op, name, fmt::streamed(tensor.sizes()),
             fmt::streamed(r.sizes()));
    }
  }
  const std::vector<int64_t> shape = {sequences, r.size(2), r.size(3), v.size(3)};
  if (state && state->sizes() != torch::IntArrayRef(shape)) {
    misuse("{}: the initial state is {}, expected [B or S, H, K, V] = {}", op, fmt::streamed(state->sizes()),
           fmt::streamed(torch::IntArrayRef(shape)));
  }
  check_recurrence(op, r, v, w, chunk);
}

Tensor state_or_zero(const std::optional<Tensor>& state, const Tensor& r, const Tensor& v, int64_t sequences) {
  return state ? widened(*state)
               : torch::zeros({sequences, r.size(2), r.size(3), v.size(3)}, widened(r).options().requires_grad(false));
}

/// Moves x by one place along `dim`: x_{i+1} at i (left) or x_{i-1} at i (right), a zero where nothing comes in.
Tensor moved_left(const Tensor& x, int64_t dim) {
  return torch::cat({x.narrow(dim, 1, x.size(dim) - 1), torch::zeros_like(x.narrow(dim, 0, 1))}, dim);
}

Tensor moved_right(const Tensor& x, int64_t dim) {
  return torch::cat({torch::zeros_like(x.narrow(dim, 0, 1)), x.narrow(dim, 0, x.size(dim) - 1)}, dim);
}

/// sum_d q_id k_jd e^{G_id - G_jd} for j <= i inside each chunk; q, k, w [B, H, N, C, K] -> [B, H, N, C, C].
Tensor scores(const Tensor& q, const Tensor& k, const Tensor& w) {
  const auto as_rows = [](const Tensor& x) { return x.flatten(0, 2).unsqueeze(2); };  // [B H N, C, 1, K]
  const Tensor matrix = gated_linear_attention_matrix(as_rows(q), as_rows(k), as_rows(w), /*scale=*/1);
  return matrix.view({q.size(0), q.size(1), q.size(2), q.size(3), q.size(3)});
}

/// The same with the gates before token i, G_{i-1} - G_j for j < i: what token i sees of the state before it. Row i is
/// row i - 1 of the scores of the next token's query, so that no exponent gets positive.
Tensor scores_before(const Tensor& q, const Tensor& k, const Tensor& w) {
  return moved_right(scores(moved_left(q, -2), k, w), -2);
}

/// The definition, once: what a chunk of one token costs in set-up is several times its arithmetic.
std::tuple<Tensor, Tensor> one_token(const Tensor& r, const Tensor& w, const Tensor& k, const Tensor& v,
                                     const Tensor& a, const Tensor& b, const Tensor& state) {
  const auto row = [](const Tensor& x) { return widened(x).transpose(1, 2); };  // [B, 1, H, K] -> [B, H, 1, K]
  const auto column = [&](const Tensor& x) { return row(x).transpose(-1, -2); };
  const Tensor after = column(w).exp() * state + column(b) * torch::matmul(row(a), state) + column(k) * row(v);
  return {torch::matmul(row(r), after).transpose(1, 2).to(v.scalar_type()), after};
}

/// P = (I - E(a, b))^{-1} [(a e^{G-}) S + E(a, k) V] holds a_t^T S_{t-1} of a chunk's tokens, E = scores_before; then
/// O = (r e^G) S + F(r, b) P + F(r, k) V with F = scores, S' = diag(e^{G_C}) S + (b e^{G_C-G})^T P + (k e^{G_C-G})^T V.
std::tuple<Tensor, Tensor> in_chunks(const Tensor& r, const Tensor& w, const Tensor& k, const Tensor& v,
                                     const Tensor& a, const Tensor& b, Tensor state, int64_t chunk) {
  const int64_t tokens = r.size(1), size = std::min(chunk, tokens), values = v.size(3);
  const auto chunks = [&](const Tensor& x) { return to_chunks(widened(x), size); };  // [B, H, N, C, K]
  const Tensor rc = chunks(r), wc = chunks(w), kc = chunks(k), vc = chunks(v), ac = chunks(a), bc = chunks(b);
  const Tensor G = cumulative_gates(wc, -2).sums, total = G.narrow(-2, size - 1, 1);
  const auto factor = [&](const Tensor& exponent) { return exponent.to(rc.scalar_type()).exp(); };

  const Tensor right = torch::cat({torch::matmul(scores_before(ac, kc, wc), vc), ac * factor(moved_right(G, -2))}, -1);
  const Tensor solved = torch::linalg_solve_triangular(-scores_before(ac, bc, wc), right, /*upper=*/false,
                                                       /*left=*/true, /*unitriangular=*/true);
  const Tensor to_end = factor(total - G);
  const Tensor own = torch::matmul(scores(rc, kc, wc), vc);                 // F(r, k) V
  const Tensor added = torch::matmul((kc * to_end).transpose(-1, -2), vc);  // (k e^{G_C-G})^T V
  const auto U = solved.narrow(-1, 0, values).unbind(2), W = solved.narrow(-1, values, k.size(3)).unbind(2);
  const auto Frb = scores(rc, bc, wc).unbind(2), r_in = (rc * factor(G)).unbind(2);
  const auto b_out = (bc * to_end).transpose(-1, -2).unbind(2), decay = factor(total).transpose(-1, -2).unbind(2);
  const auto outputs_own = own.unbind(2), states_added = added.unbind(2);

  std::vector<Tensor> outputs;
  for (size_t c = 0; c < U.size(); ++c) {
    const Tensor P = U[c] + torch::matmul(W[c], state);
    outputs.push_back(outputs_own[c] + torch::matmul(r_in[c], state) + torch::matmul(Frb[c], P));
    state = decay[c] * state + states_added[c] + torch::matmul(b_out[c], P);
  }
  return {from_chunks(torch::stack(outputs, 2), tokens).to(v.scalar_type()), state};
}

/// r, w, k, v, a, b of sequences of one length.
std::tuple<Tensor, Tensor> dense_rwkv7(const std::vector<Tensor>& in, const Tensor& state, int64_t chunk) {
  const int64_t tokens = in[0].size(1);
  if (tokens == 0) return {in[3], state};
  return tokens == 1 ? one_token(in[0], in[1], in[2], in[3], in[4], in[5], state)
                     : in_chunks(in[0], in[1], in[2], in[3], in[4], in[5], state, chunk);
}

/// What each token reads of the state before it, from what its query reads after the token before: the first ones of
/// the sequences read the states that those begin with.
Tensor read_before(const Tensor& after, const Tensor& r, const Tensor& state, const Tensor& offsets) {
  const auto read = [](const Tensor& tokens, const Tensor& states) {  // [F, H, K], [F, H, K, V]
    return torch::matmul(tokens.unsqueeze(-2), states).squeeze(-2);
  };
  if (!offsets.defined()) {
    return torch::cat({read(r.select(1, 0), state).unsqueeze(1), after.narrow(1, 0, r.size(1) - 1)}, 1);
  }
  const Tensor some = (offsets.diff() > 0).nonzero().squeeze(1);  // sequences that have a token
  const Tensor first = offsets.index_select(0, some).to(r.device());
  const Tensor reads = read(r[0].index_select(0, first), state.index_select(0, some.to(r.device())));
  return moved_right(after, 1).index_copy(1, first, reads.unsqueeze(0));
}

}  // namespace

std::tuple<Tensor, Tensor> rwkv6(const Tensor& r, const Tensor& k, const Tensor& v, const Tensor& w, const Tensor& u,
                                 const std::optional<Tensor>& initial_state, const std::optional<Tensor>& cu_seqlens,
                                 int64_t chunk) {
  const Tensor offsets = packed_offsets("rwkv6", r, cu_seqlens);
  const int64_t sequences = count_sequences(r, offsets);
  check_shapes("rwkv6", r, {{"k", k}, {"w", w}}, v, w, initial_state, sequences, chunk);
  if (u.sizes() != r.sizes().slice(2, 2)) {
    misuse("rwkv6: u is {}, expected [H, K] of r {}", fmt::streamed(u.sizes()), fmt::streamed(r.sizes()));
  }
  const Tensor state = state_or_zero(initial_state, r, v, sequences), reading = widened(r), values = widened(v);
  // What token t + 1 reads before it writes is what its query reads after token t.
  const auto [after, last] =
      gated_linear_attention(moved_left(reading, 1), k, values, w, /*scale=*/1, state, cu_seqlens, chunk);
  const Tensor bonus = (reading * widened(u) * widened(k)).sum(-1, true) * values;
  return {(read_before(after, reading, state, offsets) + bonus).to(v.scalar_type()), last};
}

std::tuple<Tensor, Tensor> rwkv7(const Tensor& r, const Tensor& w, const Tensor& k, const Tensor& v, const Tensor& a,
                                 const Tensor& b, const std::optional<Tensor>& initial_state,
                                 const std::optional<Tensor>& cu_seqlens, int64_t chunk) {
  const Tensor offsets = packed_offsets("rwkv7", r, cu_seqlens);
  const int64_t sequences = count_sequences(r, offsets);
  check_shapes("rwkv7", r, {{"w", w}, {"k", k}, {"a", a}, {"b", b}}, v, w, initial_state, sequences, chunk);
  const Tensor state = state_or_zero(initial_state, r, v, sequences);
  if (!offsets.defined()) return dense_rwkv7({r, w, k, v, a, b}, state, chunk);
  std::vector<std::vector<Tensor>> parts;
  for (const Tensor& t : {r, w, k, v, a, b}) parts.push_back(split_sequences(t, offsets, 1));
  std::vector<Tensor> outputs, states;
  for (size_t s = 0; s < parts[0].size(); ++s) {
    std::vector<Tensor> own;
    for (const auto& all : parts) own.push_back(all[s]);
    const auto [o, end] = dense_rwkv7(own, state.narrow(0, static_cast<int64_t>(s), 1), chunk);
    outputs.push_back(o);
    states.push_back(end);
  }
  return {torch::cat(outputs, 1), torch::cat(states)};
}

TORCH_LIBRARY_FRAGMENT(seqloom, m) {
  define(m,
         "rwkv6(Tensor r, Tensor k, Tensor v, Tensor w, Tensor u, Tensor? initial_state=None, Tensor? cu_seqlens=None, "
         "int chunk=64) -> (Tensor, Tensor)",
         &rwkv6);
  define(m,
         "rwkv7(Tensor r, Tensor w, Tensor k, Tensor v, Tensor a, Tensor b, Tensor? initial_state=None, Tensor? "
         "cu_seqlens=None, int chunk=64) -> (Tensor, Tensor)",
         &rwkv7);
}

}  // namespace seqloom::ops
