#include "ops/delta_rule.h"

#include <fmt/ostream.h>
#include <torch/library.h>

#include "base/error.h"
#include "ops/chunks.h"
#include "ops/precision.h"

namespace seqloom::ops {
namespace {

using torch::Tensor;

void check_shapes(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& beta, const std::optional<Tensor>& g,
                  const std::optional<Tensor>& state) {
  if (q.dim() != 4 || q.size(1) < 1 || k.sizes() != q.sizes() || v.dim() != 4 ||
      v.sizes().slice(0, 3) != q.sizes().slice(0, 3)) {
    misuse("delta_rule: q {}, k {}, v {}: expected q, k [B, T, H, K] and v [B, T, H, V] with T >= 1",
           fmt::streamed(q.sizes()), fmt::streamed(k.sizes()), fmt::streamed(v.sizes()));
  }
  for (const auto& [name, t] : {std::pair<const char*, std::optional<Tensor>>{"beta", beta}, {"log_decay", g}}) {
    if (t && t->sizes() != q.sizes().slice(0, 3)) {
      misuse("delta_rule: {} is {}, expected [B, T, H] of q {}", name, fmt::streamed(t->sizes()),
             fmt::streamed(q.sizes()));
    }
  }
  const std::vector<int64_t> shape = {q.size(0), q.size(2), q.size(3), v.size(3)};
  if (state && state->sizes() != torch::IntArrayRef(shape)) {
    misuse("delta_rule: the initial state is {}, expected [B, H, K, V] = {}", fmt::streamed(state->sizes()),
           fmt::streamed(torch::IntArrayRef(shape)));
  }
}

}  // namespace

std::tuple<Tensor, Tensor> delta_rule(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& beta,
                                      const std::optional<Tensor>& log_decay, double scale,
                                      const std::optional<Tensor>& initial_state, int64_t chunk) {
  check_shapes(q, k, v, beta, log_decay, initial_state);
  const int64_t tokens = q.size(1), size = std::min(chunk, tokens);
  const Tensor qc = to_chunks(widened(q), size) * scale, kc = to_chunks(widened(k), size);  // [B, H, N, C, K]
  const Tensor vc = to_chunks(widened(v), size);
  const Tensor write = to_chunks(widened(beta), size).unsqueeze(-1);  // [B, H, N, C, 1]

  // Ratios e^{G_i - G_j} for j <= i, decay from the chunk's start e^G, and to its end e^{G_C - G}; all exponents <= 0.
  Tensor ratio = torch::ones({size, size}, qc.options()).tril(), from_start, to_end, total;
  if (log_decay) {
    const Tensor G = to_chunks(widened(*log_decay), size).cumsum(-1);  // [B, H, N, C]
    const Tensor above = torch::ones({size, size}, G.options().dtype(torch::kBool)).triu(1);
    ratio = (G.unsqueeze(-1) - G.unsqueeze(-2)).masked_fill(above, -INFINITY).exp();
    const Tensor last = G.narrow(-1, size - 1, 1);
    from_start = G.exp().unsqueeze(-1);
    to_end = (last - G).exp().unsqueeze(-1);
    total = last.exp().unsqueeze(-1);  // [B, H, N, 1, 1]
  }
  // (I + L) [U | W] = diag(beta) [V | K e^G], L_ij = beta_i (k_i . k_j) e^{G_i - G_j} for j < i
  const Tensor L = (write * torch::matmul(kc, kc.transpose(-1, -2)) * ratio).tril(-1);
  const Tensor right = write * torch::cat({vc, log_decay ? kc * from_start : kc}, -1);
  const Tensor solved = torch::linalg_solve_triangular(L + torch::eye(size, L.options()), right, /*upper=*/false,
                                                       /*left=*/true, /*unitriangular=*/true);
  const auto U = solved.narrow(-1, 0, v.size(3)).unbind(2), W = solved.narrow(-1, v.size(3), k.size(3)).unbind(2);
  const Tensor scores = torch::matmul(qc, kc.transpose(-1, -2)) * ratio;
  const auto A = scores.unbind(2), q_in = (log_decay ? qc * from_start : qc).unbind(2);
  const auto k_out = (log_decay ? kc * to_end : kc).transpose(-1, -2).unbind(2);
  const auto decay = log_decay ? total.unbind(2) : std::vector<Tensor>();

  Tensor S = initial_state ? widened(*initial_state)
                           : torch::zeros({q.size(0), q.size(2), q.size(3), v.size(3)}, qc.options());
  std::vector<Tensor> outputs;
  for (size_t c = 0; c < U.size(); ++c) {
    const Tensor written = U[c] - torch::matmul(W[c], S);
    outputs.push_back(torch::matmul(q_in[c], S) + torch::matmul(A[c], written));
    S = (log_decay ? S * decay[c] : S) + torch::matmul(k_out[c], written);
  }
  return {from_chunks(torch::stack(outputs, 2), tokens).to(v.scalar_type()), S};
}

TORCH_LIBRARY_FRAGMENT(seqloom, m) {
  m.def(
      "delta_rule(Tensor q, Tensor k, Tensor v, Tensor beta, Tensor? log_decay=None, float scale=1.0, Tensor? "
      "initial_state=None, int chunk=64) -> (Tensor, Tensor)",
      &delta_rule);
}

}  // namespace seqloom::ops
