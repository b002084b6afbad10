#include "ops/lora.h"

#include <fmt/ostream.h>

#include <cmath>

#include "base/error.h"
#include "ops/operator.h"

namespace seqloom::ops {
namespace {

using torch::Tensor;

void check_shapes(const Tensor& weight, const Tensor& A, const Tensor& B) {
  const bool matrices = weight.dim() == 2 && A.dim() == 2 && B.dim() == 2;
  if (!matrices || A.size(1) != weight.size(1) || B.size(0) != weight.size(0) || A.size(0) != B.size(1) ||
      A.size(0) < 1) {
    misuse("lora: weight {}, A {}, B {}: expected [out, in], [r, in], [out, r] with r >= 1",
           fmt::streamed(weight.sizes()), fmt::streamed(A.sizes()), fmt::streamed(B.sizes()));
  }
}

}  // namespace

Tensor lora(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& A, const Tensor& B,
            double alpha) {
  check_shapes(weight, A, B);
  if (x.dim() < 1 || x.size(-1) != weight.size(1)) {
    misuse("lora: x is {}, expected [..., {}]", fmt::streamed(x.sizes()), weight.size(1));
  }
  const Tensor low = torch::linear(x, A) * (alpha / static_cast<double>(A.size(0)));
  return torch::linear(x, weight, bias.value_or(Tensor())) + torch::linear(low, B);
}

Tensor lora_merged(const Tensor& weight, const Tensor& A, const Tensor& B, double alpha) {
  check_shapes(weight, A, B);
  return torch::addmm(weight, B, A, /*beta=*/1, /*alpha=*/alpha / static_cast<double>(A.size(0)));
}

std::pair<Tensor, Tensor> lora_start(const Tensor& weight, int64_t rank) {
  if (weight.dim() != 2 || rank < 1) {
    misuse("lora: weight {}, rank {}: expected [out, in] and a rank of at least 1", fmt::streamed(weight.sizes()),
           rank);
  }
  const auto options = weight.options().requires_grad(false);
  const Tensor A = torch::empty({rank, weight.size(1)}, options);
  torch::nn::init::kaiming_uniform_(A, std::sqrt(5.0));
  return {A, torch::zeros({weight.size(0), rank}, options)};
}

TORCH_LIBRARY_FRAGMENT(seqloom, m) {
  define(m, "lora(Tensor x, Tensor weight, Tensor? bias, Tensor A, Tensor B, float alpha) -> Tensor", &lora,
         {.lower_in_autocast = true});
}

}  // namespace seqloom::ops
