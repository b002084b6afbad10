#include "ops/polynomial_features.h"

#include <fmt/ostream.h>

#include <cmath>
#include <vector>

#include "base/error.h"
#include "ops/operator.h"
#include "ops/precision.h"

namespace seqloom::ops {
namespace {

using torch::Tensor;

/// The monomials of one degree: each is one of the degree before times x[last], with last not below that one's last.
struct Degree {
  std::vector<int64_t> parent, last, repeats;  // repeats: how often `last` ends the tuple
  std::vector<double> orderings;               // the multinomial coefficient
};

Degree next_degree(const Degree& before, int64_t d, int64_t degree) {
  Degree next;
  for (size_t m = 0; m < before.last.size(); ++m) {
    for (int64_t i = before.last[m]; i < d; ++i) {
      const int64_t repeats = i == before.last[m] ? before.repeats[m] + 1 : 1;
      next.parent.push_back(static_cast<int64_t>(m));
      next.last.push_back(i);
      next.repeats.push_back(repeats);
      next.orderings.push_back(before.orderings[m] * static_cast<double>(degree) / static_cast<double>(repeats));
    }
  }
  return next;
}

void check(const Tensor& x, const Tensor& coeff) {
  if (x.dim() < 1 || coeff.dim() != 1 || coeff.size(0) < 2) {
    misuse("polynomial_features: x {}, coeff {}: expected x [..., d] and coeff [degree + 1] with degree >= 1",
           fmt::streamed(x.sizes()), fmt::streamed(coeff.sizes()));
  }
}

}  // namespace

Tensor elementwise_polynomial(const Tensor& x, const Tensor& coeff) {
  check(x, coeff);
  const auto c = widened(coeff).unbind();
  const Tensor wide = widened(x);
  Tensor y = c.back() * wide;
  for (size_t j = c.size() - 2; j > 0; --j) y = (y + c[j]) * wide;
  return (y + c[0]).to(x.scalar_type());
}

int64_t polynomial_width(int64_t d, int64_t degree) {
  if (degree < 1) misuse("polynomial features: degree = {}, expected at least 1", degree);
  double width = 1;
  for (int64_t j = 1; j <= degree; ++j) width = width * static_cast<double>(d + j) / static_cast<double>(j);
  if (width > static_cast<double>(kWidestFeatures)) {
    misuse(
        "polynomial features: degree {} over {} channels is {:.0f} features wide, above the limit of {}; "
        "choose a smaller degree or head width",
        degree, d, width, kWidestFeatures);
  }
  return std::llround(width);
}

Tensor polynomial_features(const Tensor& x, const Tensor& coeff) {
  check(x, coeff);
  const int64_t d = x.size(-1), degree = coeff.size(0) - 1;
  polynomial_width(d, degree);
  const auto c = widened(coeff).unbind();
  const Tensor wide = widened(x);
  Tensor monomials = torch::ones_like(wide.narrow(-1, 0, 1));
  std::vector<Tensor> features = {c[0] * monomials};
  Degree table{{0}, {0}, {0}, {1}};
  for (int64_t j = 1; j <= degree; ++j) {
    table = next_degree(table, d, j);
    const auto index = [&](const std::vector<int64_t>& list) {
      return torch::tensor(list, torch::kInt64).to(x.device());
    };
    monomials = monomials.index_select(-1, index(table.parent)) * wide.index_select(-1, index(table.last));
    features.push_back(c[static_cast<size_t>(j)] *
                       torch::tensor(table.orderings, wide.options().requires_grad(false)).sqrt() * monomials);
  }
  return torch::cat(features, -1).to(x.scalar_type());
}

TORCH_LIBRARY_FRAGMENT(seqloom, m) {
  define(m, "elementwise_polynomial(Tensor x, Tensor coeff) -> Tensor", &elementwise_polynomial);
  define(m, "polynomial_features(Tensor x, Tensor coeff) -> Tensor", &polynomial_features);
}

}  // namespace seqloom::ops
