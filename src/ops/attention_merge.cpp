#include "ops/attention_merge.h"

#include <fmt/ostream.h>

#include <limits>

#include "base/error.h"
#include "ops/operator.h"
#include "ops/precision.h"

namespace seqloom::ops {
namespace {

using torch::Tensor;

void check(const Tensor& o1, const Tensor& lse1, const Tensor& o2, const Tensor& lse2) {
  if (o1.dim() < 1 || o1.sizes() != o2.sizes() || lse1.sizes() != o1.sizes().slice(0, o1.dim() - 1) ||
      lse2.sizes() != lse1.sizes()) {
    misuse("attention_merge: o1 {}, lse1 {}, o2 {}, lse2 {}: expected o [..., d] and lse [...] of the same shapes",
           fmt::streamed(o1.sizes()), fmt::streamed(lse1.sizes()), fmt::streamed(o2.sizes()),
           fmt::streamed(lse2.sizes()));
  }
}

}  // namespace

std::pair<Tensor, Tensor> attention_merge(const Tensor& o1, const Tensor& lse1, const Tensor& o2, const Tensor& lse2) {
  check(o1, lse1, o2, lse2);
  constexpr double kHidden = -std::numeric_limits<double>::infinity();
  const Tensor a = widened(lse1), b = widened(lse2), empty = a.isneginf().logical_and(b.isneginf());
  // where both are empty any finite total will do: no weight is left that it could scale, and no gradient is NaN
  const Tensor total = torch::logaddexp(a.masked_fill(empty, 0), b.masked_fill(empty, 0));
  const Tensor o = widened(o1) * (a - total).exp().unsqueeze(-1) + widened(o2) * (b - total).exp().unsqueeze(-1);
  return {o.to(o1.scalar_type()), total.masked_fill(empty, kHidden)};
}

TORCH_LIBRARY_FRAGMENT(seqloom, m) {
  define(m, "attention_merge(Tensor o1, Tensor lse1, Tensor o2, Tensor lse2) -> (Tensor, Tensor)",
         [](const Tensor& o1, const Tensor& lse1, const Tensor& o2, const Tensor& lse2) {
           const auto [o, lse] = attention_merge(o1, lse1, o2, lse2);
           return std::make_tuple(o, lse);
         });
}

}  // namespace seqloom::ops
