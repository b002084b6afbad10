#include "ops/orthogonal_momenta.h"

#include "ops/newton_schulz.h"

namespace seqloom::ops {

using torch::Tensor;

OrthogonalMomenta::OrthogonalMomenta(const Tensor& momentum, const Tensor& errors, const Tensor& inputs,
                                     const Tensor& carried, const Tensor& pushed, int64_t ns_steps)
    : tall_(momentum.size(-2) > momentum.size(-1)),
      first_(tall_ ? momentum.transpose(-1, -2) : momentum),
      narrow_(tall_ ? inputs : errors),
      wide_(tall_ ? errors : inputs),
      carried_(carried),
      pushed_(pushed),
      factors_(newton_schulz_factor(grams(), ns_steps).to(momentum.scalar_type())) {}

/// X_t X_t^T = carried^2 X_0 X_0^T + L R + (L R)^T,  L = U^T diag(pushed),  R = carried W X_0^T + W W^T diag(pushed) U
/// / 2 with U the narrow vectors as rows, W the wide ones. In float64, as the factors need it.
Tensor OrthogonalMomenta::grams() const {
  const auto exact = [](const Tensor& x) { return x.to(torch::kFloat64); };
  const Tensor first = exact(first_), narrow = exact(narrow_), wide = exact(wide_);
  const Tensor carried = exact(carried_).unsqueeze(-1).unsqueeze(-1);                   // [B, H, n, 1, 1]
  const Tensor pushed = exact(pushed_).unsqueeze(-1) * narrow.unsqueeze(2);             // [B, H, n, m, s]
  const Tensor inner = torch::matmul(wide, wide.transpose(-1, -2) * 0.5).unsqueeze(2);  // [B, H, 1, m, m]
  const Tensor outer = torch::matmul(wide, first.transpose(-1, -2)).unsqueeze(2);       // [B, H, 1, m, s]
  const Tensor own = torch::matmul(first, first.transpose(-1, -2) * 0.5).unsqueeze(2);  // [B, H, 1, s, s]
  const Tensor half = torch::matmul(pushed.transpose(-1, -2), carried * outer + torch::matmul(inner, pushed));
  const Tensor sums = half + carried.square() * own;
  return sums + sums.transpose(-1, -2);
}

Tensor OrthogonalMomenta::read(const Tensor& weights, const Tensor& z) const {
  return tall_ ? read_tall(weights, z) : read_wide(weights, z);
}

/// O_s z = F_s (X_s z): X_s z_t of all s and t first, then one product sums over s.
Tensor OrthogonalMomenta::read_wide(const Tensor& weights, const Tensor& z) const {
  const Tensor from_first = (weights * carried_.unsqueeze(-2)).unsqueeze(-1) *
                            torch::matmul(z, first_.transpose(-1, -2)).unsqueeze(-2);  // [B, H, t, s, X rows]
  const Tensor along = torch::matmul(z, wide_.transpose(-1, -2)).unsqueeze(-2) * pushed_.unsqueeze(2);
  const Tensor from_pushes = torch::matmul((weights.unsqueeze(-1) * along).flatten(2, 3), narrow_);
  return torch::matmul(from_first.flatten(-2) + from_pushes.view_as(from_first).flatten(-2), factors_.flatten(2, 3));
}

/// O_s z = X_s^T (F_s z).
Tensor OrthogonalMomenta::read_tall(const Tensor& weights, const Tensor& z) const {
  const int64_t n = weights.size(-1);
  const Tensor factored = torch::matmul(z, factors_.flatten(2, 3).transpose(-1, -2)).unflatten(-1, {n, -1});
  const Tensor weighted = weights.unsqueeze(-1) * factored;  // [B, H, t, s, X rows]
  const Tensor along = torch::matmul(weighted.flatten(2, 3), narrow_.transpose(-1, -2)).unflatten(2, {n, n});
  const Tensor pushes = (along * pushed_.unsqueeze(2)).sum(3);  // [B, H, t, m]
  const Tensor firsts = torch::matmul(carried_.unsqueeze(2).unsqueeze(2), weighted).squeeze(-2);
  return torch::matmul(firsts, first_) + torch::matmul(pushes, wide_);
}

Tensor OrthogonalMomenta::sum(const Tensor& weights) const {
  const Tensor own =
      torch::matmul((weights * carried_).unsqueeze(-2), factors_.flatten(3)).view_as(factors_.select(2, 0));
  const Tensor pushes = (weights.unsqueeze(-1) * pushed_).transpose(-1, -2).unsqueeze(-1) * narrow_.unsqueeze(3);
  const Tensor steered = torch::matmul(pushes.flatten(-2), factors_.flatten(2, 3));  // [B, H, m, s]
  const Tensor total = torch::matmul(own, first_) + torch::matmul(steered.transpose(-1, -2), wide_);
  return tall_ ? total.transpose(-1, -2) : total;
}

}  // namespace seqloom::ops
