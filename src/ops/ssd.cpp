#include "ops/ssd.h"

#include <fmt/ostream.h>

#include <cmath>

#include "base/error.h"
#include "ops/gated_linear_attention.h"
#include "ops/operator.h"
#include "ops/packing.h"
#include "ops/precision.h"

namespace seqloom::ops {
namespace {

using torch::Tensor;
using Optional = std::optional<Tensor>;

void check_shape(const char* name, const Tensor& t, torch::IntArrayRef shape, const char* letters) {
  if (t.sizes() == shape) return;
  misuse("ssd: {} is {}, expected {} = {}", name, fmt::streamed(t.sizes()), letters, fmt::streamed(shape));
}

void check_maps(const Tensor& B, const Tensor& C, const Tensor& dt) {
  const auto of_tokens = [&](const Tensor& m) {
    return m.dim() == 4 && m.sizes().slice(0, 2) == dt.sizes().slice(0, 2);
  };
  if (!of_tokens(B) || B.sizes() != C.sizes() || B.size(2) < 1 || B.size(3) < 1) {
    misuse("ssd: B {}, C {}: expected both [B, T, G, N] with B = {}, T = {}", fmt::streamed(B.sizes()),
           fmt::streamed(C.sizes()), dt.size(0), dt.size(1));
  }
  if (dt.size(2) % B.size(2) != 0) misuse("ssd: {} groups of B and C do not divide H = {}", B.size(2), dt.size(2));
}

void check_decay(const Tensor& A, const Tensor& dt) {
  check_shape("A", A, {dt.size(2)}, "[H]");
  const auto largest = A.detach().max().item<double>();
  if (largest > 0) misuse("ssd: A reaches {}, expected rates <= 0, under which a state fades", largest);
}

void check_shapes(const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B, const Tensor& C,
                  const Optional& D, const Optional& z, const StepRule& rule, const Optional& state,
                  const Optional& cu_seqlens) {
  if (x.dim() != 4 || x.numel() == 0) {
    misuse("ssd: x is {}, expected [B, T, H, P] with no empty dimension", fmt::streamed(x.sizes()));
  }
  const int64_t batch = x.size(0), tokens = x.size(1), heads = x.size(2), width = x.size(3);
  check_shape("dt", dt, {batch, tokens, heads}, "[B, T, H]");
  check_decay(A, dt);
  check_maps(B, C, dt);
  if (z) check_shape("z", *z, x.sizes(), "[B, T, H, P]");
  if (D && D->dim() != 1) check_shape("D", *D, {heads, width}, "[H, P]");
  if (D && D->dim() == 1) check_shape("D", *D, {heads}, "[H]");
  if (rule.bias) check_shape("dt_bias", *rule.bias, {heads}, "[H]");
  if (cu_seqlens && batch != 1) {
    misuse("ssd: x is {}, expected packed sequences [1, T, H, P] beside cu_seqlens", fmt::streamed(x.sizes()));
  }
  const int64_t sequences = cu_seqlens ? checked_offsets(*cu_seqlens, tokens, "ssd: cu_seqlens").size(0) - 1 : batch;
  if (state) check_shape("the initial state", *state, {sequences, heads, width, B.size(3)}, "[B or S, H, P, N]");
  if (!(rule.low >= 0) || !(rule.high >= rule.low)) {
    misuse("ssd: dt_limit is [{:g}, {:g}], expected 0 <= low <= high", rule.low, rule.high);
  }
}

/// B or C [B, T, G, N] -> [B, T, H, N].
Tensor per_head(const Tensor& map, int64_t heads) {
  const int64_t share = heads / map.size(2);
  return share == 1 ? map : map.unsqueeze(3).expand({-1, -1, -1, share, -1}).flatten(2, 3);
}

}  // namespace

Tensor step_sizes(const Tensor& dt, const StepRule& rule) {
  Tensor step = widened(dt);
  if (rule.bias) step = step + widened(*rule.bias);
  if (rule.softplus) step = torch::softplus(step);
  if (std::isinf(rule.high)) return rule.softplus && rule.low == 0 ? step : step.clamp_min(rule.low);
  return step.clamp(rule.low, rule.high);
}

std::tuple<Tensor, Tensor> ssd(const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B, const Tensor& C,
                               const Optional& D, const Optional& z, const StepRule& rule,
                               const Optional& initial_state, const Optional& cu_seqlens, int64_t chunk) {
  check_shapes(x, dt, A, B, C, D, z, rule, initial_state, cu_seqlens);
  const Tensor step = step_sizes(dt, rule), wide = widened(x);
  const Optional start = initial_state ? Optional(widened(*initial_state).transpose(2, 3)) : std::nullopt;
  const auto [o, state] =
      gated_linear_attention(per_head(widened(C), x.size(2)), per_head(widened(B), x.size(2)),
                             step.unsqueeze(-1) * wide, step * widened(A), /*scale=*/1, start, cu_seqlens, chunk);
  Tensor y = o;
  if (D) y = y + (D->dim() == 1 ? widened(*D).unsqueeze(-1) : widened(*D)) * wide;
  if (z) y = y * torch::silu(widened(*z));
  return {y.to(x.scalar_type()), state.transpose(2, 3)};
}

Tensor ssd_matrix(const Tensor& dt, const Tensor& A, const Tensor& B, const Tensor& C) {
  if (dt.dim() != 3) misuse("ssd: dt is {}, expected [B, T, H]", fmt::streamed(dt.sizes()));
  check_decay(A, dt);
  check_maps(B, C, dt);
  const Tensor step = widened(dt);
  const Tensor matrix = gated_linear_attention_matrix(per_head(widened(C), dt.size(2)),
                                                      per_head(widened(B), dt.size(2)), step * widened(A), 1);
  return matrix * step.transpose(1, 2).unsqueeze(-2);
}

Tensor segsum(const Tensor& x) {
  if (x.dim() < 1 || x.size(-1) < 1) misuse("segsum: x is {}, expected [..., T] with T >= 1", fmt::streamed(x.sizes()));
  const int64_t tokens = x.size(-1);
  const Tensor above = torch::ones({tokens, tokens}, x.options().dtype(torch::kBool)).triu();
  auto square = x.sizes().vec();
  square.push_back(tokens);
  const Tensor terms = widened(x).unsqueeze(-1).expand(square).masked_fill(above, 0);  // x_i at (i, j), j < i
  return terms.cumsum(-2).masked_fill(above.triu(1), -INFINITY).to(x.scalar_type());
}

TORCH_LIBRARY_FRAGMENT(seqloom, m) {
  define(m,
         "ssd(Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D=None, Tensor? z=None, Tensor? dt_bias=None, "
         "bool dt_softplus=False, float[] dt_limit=[], Tensor? initial_state=None, Tensor? cu_seqlens=None, int "
         "chunk_size=64) -> (Tensor, Tensor)",
         [](const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B, const Tensor& C, const Optional& D,
            const Optional& z, const Optional& dt_bias, bool dt_softplus, const std::vector<double>& dt_limit,
            const Optional& initial_state, const Optional& cu_seqlens, int64_t chunk) {
           if (dt_limit.size() != 0 && dt_limit.size() != 2) {
             misuse("ssd: dt_limit has {} numbers, expected none or [low, high]", dt_limit.size());
           }
           StepRule rule{dt_bias, dt_softplus};
           if (!dt_limit.empty()) {
             rule.low = dt_limit[0];
             rule.high = dt_limit[1];
           }
           return ssd(x, dt, A, B, C, D, z, rule, initial_state, cu_seqlens, chunk);
         },
         {.transposed = {false, true}});
  define(m, "segsum(Tensor x) -> Tensor", &segsum);
}

}  // namespace seqloom::ops
