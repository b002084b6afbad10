#include "ops/vector_quantize.h"

#include <fmt/ostream.h>

#include "base/error.h"
#include "ops/operator.h"
#include "ops/precision.h"

namespace seqloom::ops {
namespace {

using torch::Tensor;

void check_shapes(const Tensor& x, const Tensor& codewords, const std::optional<Tensor>& keep) {
  if (x.dim() != 4 || codewords.dim() != 3 || codewords.size(0) != x.size(1) || codewords.size(2) != x.size(3) ||
      codewords.size(1) < 1) {
    misuse("vector_quantize: x is {} and the codewords are {}, expected [B, H, L, K] and [H, S, K] with S >= 1",
           fmt::streamed(x.sizes()), fmt::streamed(codewords.sizes()));
  }
  if (keep && keep->sizes() != torch::IntArrayRef({x.size(0), x.size(2)})) {
    misuse("vector_quantize: the mask is {}, expected [{}, {}]", fmt::streamed(keep->sizes()), x.size(0), x.size(2));
  }
}

}  // namespace

Tensor codebook(const Tensor& c_sum, const Tensor& c_count, double count_min) {
  if (c_sum.dim() < 2 || c_count.sizes() != c_sum.sizes().slice(0, c_sum.dim() - 1)) {
    misuse("codebook: c_sum is {} and c_count {}, expected [H, S, K] and [H, S]", fmt::streamed(c_sum.sizes()),
           fmt::streamed(c_count.sizes()));
  }
  return (widened(c_sum) / widened(c_count).clamp_min(count_min).unsqueeze(-1)).detach();
}

std::tuple<Tensor, Tensor, Tensor> vector_quantize(const Tensor& x, const Tensor& codewords,
                                                   const std::optional<Tensor>& keep) {
  check_shapes(x, codewords, keep);
  const Tensor vectors = widened(x);
  // |x|^2 is the same for every codeword
  const Tensor distance =
      codewords.square().sum(-1).unsqueeze(1) - 2 * torch::matmul(vectors.detach(), codewords.transpose(-1, -2));
  const Tensor codes = distance.argmin(-1);
  const Tensor head = torch::arange(x.size(1), codes.options()).view({1, -1, 1});
  const Tensor nearest = codewords.index({head, codes});
  Tensor error = (vectors - nearest).square().sum(-1).sum(1);  // [B, L]; never negative, unlike |x|^2 + distance
  if (keep) error = error * *keep;
  return {codes, (nearest + (vectors - vectors.detach())).to(x.scalar_type()), error.mean()};
}

std::tuple<Tensor, Tensor> sums_by_code(const Tensor& values, const Tensor& codes, int64_t codewords) {
  const Tensor all = torch::arange(codewords, codes.options()).unsqueeze(-1);
  const Tensor belongs = (codes.unsqueeze(-2) == all).to(widened(values).scalar_type());  // [..., S, L]
  return {torch::matmul(belongs, widened(values)), belongs.sum(-1)};
}

TORCH_LIBRARY_FRAGMENT(seqloom, m) {
  // y, codes, commit_loss: torch.library.opcheck asks for a floating output first
  define(m, "vector_quantize(Tensor x, Tensor codewords, Tensor? keep=None) -> (Tensor, Tensor, Tensor)",
         [](const Tensor& x, const Tensor& codewords, const std::optional<Tensor>& keep) {
           const auto [codes, y, commit_loss] = vector_quantize(x, codewords, keep);
           return std::make_tuple(y, codes, commit_loss);
         });
}

}  // namespace seqloom::ops
