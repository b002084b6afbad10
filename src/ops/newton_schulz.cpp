#include "ops/newton_schulz.h"

#include <fmt/ostream.h>
#include <torch/library.h>

#include <algorithm>

#include "base/error.h"
#include "ops/precision.h"

namespace seqloom::ops {

using torch::Tensor;

Tensor newton_schulz(const Tensor& x, int64_t steps, const std::array<double, 3>& quintic, double eps) {
  if (x.dim() < 2) misuse("newton_schulz: x is {}, expected matrices [..., m, n]", fmt::streamed(x.sizes()));
  if (steps < 0) misuse("newton_schulz: steps = {}, expected at least 0", steps);
  if (x.numel() == 0) return x;
  const bool tall = x.size(-2) > x.size(-1);
  Tensor X = widened(tall ? x.transpose(-2, -1) : x)
                 .reshape({-1, std::min(x.size(-2), x.size(-1)), std::max(x.size(-2), x.size(-1))});
  X = X / (X.norm(2, {1, 2}, /*keepdim=*/true) + eps);
  const auto [a, b, c] = quintic;
  for (int64_t step = 0; step < steps; ++step) {
    const Tensor A = torch::bmm(X, X.transpose(1, 2));
    X = torch::baddbmm(X, torch::baddbmm(A, A, A, b, c), X, a, 1);
  }
  return (tall ? X.transpose(1, 2) : X).reshape(x.sizes()).to(x.scalar_type());
}

TORCH_LIBRARY_FRAGMENT(seqloom, m) {
  m.def("newton_schulz(Tensor x, int steps=5, float[3] quintic=[3.4445, -4.775, 2.0315], float eps=1e-07) -> Tensor",
        [](const Tensor& x, int64_t steps, const std::vector<double>& quintic, double eps) {
          return newton_schulz(x, steps, {quintic[0], quintic[1], quintic[2]}, eps);
        });
}

}  // namespace seqloom::ops
