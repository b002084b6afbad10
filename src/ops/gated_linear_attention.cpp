#include "ops/gated_linear_attention.h"

#include <fmt/ostream.h>

#include <torch/library.h>

#include "base/error.h"
#include "ops/chunks.h"
#include "ops/precision.h"

namespace seqloom::ops {
namespace {

using torch::Tensor;

void check_shapes(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& g,
                  const std::optional<Tensor>& state) {
  if (q.dim() != 4 || k.sizes() != q.sizes() || v.dim() != 4 || v.sizes().slice(0, 3) != q.sizes().slice(0, 3)) {
    misuse("gated_linear_attention: q {}, k {}, v {}: expected q, k [B, T, H, K] and v [B, T, H, V]",
           fmt::streamed(q.sizes()), fmt::streamed(k.sizes()), fmt::streamed(v.sizes()));
  }
  if (q.size(1) < 1) misuse("gated_linear_attention: T = 0 tokens; at least one is needed");
  if (g && g->sizes() != q.sizes() && g->sizes() != q.sizes().slice(0, 3)) {
    misuse("gated_linear_attention: log_decay is {}, expected [B, T, H, K] or [B, T, H] of q {}",
           fmt::streamed(g->sizes()), fmt::streamed(q.sizes()));
  }
  const std::vector<int64_t> state_shape = {q.size(0), q.size(2), q.size(3), v.size(3)};
  if (state && state->sizes() != torch::IntArrayRef(state_shape)) {
    misuse("gated_linear_attention: the initial state is {}, expected [B, H, K, V] = {}", fmt::streamed(state->sizes()),
           fmt::streamed(torch::IntArrayRef(state_shape)));
  }
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
  std::vector<Tensor> rows;
  for (int64_t begin = 0; begin < chunk; begin += block) {
    const int64_t size = std::min(block, chunk - begin);
    const Tensor q_rows = q.narrow(-2, begin, size), own = decay.narrow(-2, begin, size);
    const Tensor difference = own.unsqueeze(-2) - own.unsqueeze(-3);  // [..., i, j, K]
    const Tensor mask = lower_triangle(size, q);
    // masked before exp: above the diagonal differences are positive, and inf * 0 would poison the gradient
    const Tensor ratio = difference.masked_fill(mask.logical_not().unsqueeze(-1), -INFINITY).exp();
    Tensor diagonal = (q_rows.unsqueeze(-2) * k.narrow(-2, begin, size).unsqueeze(-3) * ratio).sum(-1);
    std::vector<Tensor> parts;
    if (begin > 0) {
      const Tensor reference = decay.narrow(-2, begin - 1, 1);
      const Tensor earlier = k.narrow(-2, 0, begin) * (reference - decay.narrow(-2, 0, begin)).exp();
      parts.push_back(torch::matmul(q_rows * (own - reference).exp(), earlier.transpose(-1, -2)));
    }
    parts.push_back(diagonal);
    auto rest = q.sizes().vec();
    rest[rest.size() - 2] = size;
    rest.back() = chunk - begin - size;
    if (rest.back() > 0) parts.push_back(torch::zeros(rest, q.options()));
    rows.push_back(torch::cat(parts, -1));
  }
  return torch::cat(rows, -2);
}

Tensor scores(const Tensor& q, const Tensor& k, const std::optional<Tensor>& decay) {
  if (!decay) return torch::matmul(q, k.transpose(-1, -2)).tril();
  if (decay->size(-1) == 1) {
    const Tensor g = decay->squeeze(-1);
    const Tensor difference = g.unsqueeze(-1) - g.unsqueeze(-2);
    const Tensor ratio = difference.masked_fill(lower_triangle(q.size(-2), q).logical_not(), -INFINITY).exp();
    return torch::matmul(q, k.transpose(-1, -2)) * ratio;
  }
  constexpr double kCentredLimit = 60;  // e^{+-30} on either side keeps full float32 precision
  const bool mild = decay->detach().min().item<double>() > -kCentredLimit;
  return mild ? centred_scores(q, k, *decay) : blocked_scores(q, k, *decay);
}

}  // namespace

std::tuple<Tensor, Tensor> gated_linear_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                                  const std::optional<Tensor>& log_decay, double scale,
                                                  const std::optional<Tensor>& initial_state, int64_t chunk) {
  check_shapes(q, k, v, log_decay, initial_state);
  const int64_t tokens = q.size(1), size = std::min(chunk, tokens);
  const Tensor qc = to_chunks(widened(q), size) * scale;  // [B, H, N, C, K]
  const Tensor kc = to_chunks(widened(k), size), vc = to_chunks(widened(v), size);
  std::optional<Tensor> decay;  // cumulative, [B, H, N, C, K or 1]
  if (log_decay) {
    const Tensor g = to_chunks(widened(*log_decay), size);
    decay = (g.dim() == 4 ? g.unsqueeze(-1) : g).cumsum(-2);
  }
  const Tensor start = initial_state ? widened(*initial_state)
                                     : torch::zeros({q.size(0), q.size(2), q.size(3), v.size(3)}, qc.options());
  Tensor q_in = qc, k_out = kc;
  Tensor chunk_decay = torch::ones({1, 1, kc.size(2), 1, 1}, kc.options());
  if (decay) {
    const Tensor total = decay->narrow(-2, size - 1, 1);
    q_in = qc * decay->exp();
    k_out = kc * (total - *decay).exp();
    chunk_decay = total.exp().transpose(-1, -2);  // [B, H, N, K or 1, 1]
  }
  const Tensor added = torch::matmul(k_out.transpose(-1, -2), vc);
  const auto [before, last] = scan_chunk_states(chunk_decay, added, start);
  const Tensor o = torch::matmul(scores(qc, kc, decay), vc) + torch::matmul(q_in, before);
  return {from_chunks(o, tokens).to(v.scalar_type()), last};
}

std::tuple<Tensor, Tensor, Tensor> normalized_gated_linear_attention(
    const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& log_decay, double scale, double eps,
    const std::optional<Tensor>& initial_state, const std::optional<Tensor>& initial_z, int64_t chunk) {
  // z is the state of a value that is always one: a column more of S.
  auto column = v.sizes().vec();
  column.back() = 1;
  const Tensor ones = torch::ones(column, v.options().dtype(widened(v).scalar_type()));
  const Tensor values = torch::cat({widened(v), ones}, -1);
  std::optional<Tensor> start;
  if (initial_state || initial_z) {
    const Tensor zero = torch::zeros({q.size(0), q.size(2), q.size(3), v.size(3) + 1}, values.options());
    start = torch::cat({initial_state ? widened(*initial_state) : zero.narrow(-1, 0, v.size(3)),
                        initial_z ? widened(*initial_z).unsqueeze(-1) : zero.narrow(-1, 0, 1)},
                       -1);
  }
  const auto [o, state] = gated_linear_attention(q, k, values, log_decay, scale, start, chunk);
  const Tensor normalized = o.narrow(-1, 0, v.size(3)) / (o.narrow(-1, v.size(3), 1) + eps);
  return {normalized.to(v.scalar_type()), state.narrow(-1, 0, v.size(3)), state.select(-1, v.size(3))};
}

Tensor gated_linear_attention_matrix(const Tensor& q, const Tensor& k, const std::optional<Tensor>& log_decay,
                                     double scale) {
  const Tensor qh = widened(q).transpose(1, 2) * scale, kh = widened(k).transpose(1, 2);
  std::optional<Tensor> decay;
  if (log_decay) {
    const Tensor g = widened(*log_decay).transpose(1, 2);
    decay = (g.dim() == 3 ? g.unsqueeze(-1) : g).cumsum(-2);
  }
  return scores(qh, kh, decay);
}

TORCH_LIBRARY_FRAGMENT(seqloom, m) {
  m.def(
      "gated_linear_attention(Tensor q, Tensor k, Tensor v, Tensor? log_decay=None, float scale=1.0, Tensor? "
      "initial_state=None, int chunk=64) -> (Tensor, Tensor)",
      &gated_linear_attention);
  m.def(
      "normalized_gated_linear_attention(Tensor q, Tensor k, Tensor v, Tensor? log_decay=None, float scale=1.0, float "
      "eps=1e-6, Tensor? initial_state=None, Tensor? initial_z=None, int chunk=64) -> (Tensor, Tensor, Tensor)",
      &normalized_gated_linear_attention);
}

}  // namespace seqloom::ops
