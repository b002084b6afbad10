#include "ops/newton_schulz.h"

#include <fmt/ostream.h>

#include <algorithm>

#include "base/error.h"
#include "ops/operator.h"
#include "ops/precision.h"
#include "ops/reference_gradient.h"

namespace seqloom::ops {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Quintic = std::array<double, 3>;

/// Rounding of A grows twelvefold in a step where A is small, by 1e12 in these.
constexpr int64_t kMaxSteps = 12;

/// P = a I + b A + c A^2.
Tensor quintic_of(const Tensor& A, const Quintic& quintic) {
  Tensor P = torch::baddbmm(A, A, A, quintic[1], quintic[2]);
  P.diagonal(0, 1, 2).add_(quintic[0]);
  return P;
}

/// q(A) [N, m, m], a polynomial of symmetric A, with newton_schulz(X) = q(X X^T) X where |X|_F = 1. A step
///   Q <- P Q,  A <- P A P
/// has no product wider than m.
Tensor polynomial(Tensor A, int64_t steps, const Quintic& quintic) {
  if (steps == 0) return torch::eye(A.size(1), A.options().requires_grad(false)).expand_as(A);
  Tensor Q;
  for (int64_t step = 0; step < steps; ++step) {
    const Tensor P = quintic_of(A, quintic);
    Q = step == 0 ? P : torch::bmm(P, Q);
    if (step + 1 < steps) A = torch::bmm(torch::bmm(A, P), P);
  }
  return Q;
}

Tensor with_transpose(const Tensor& x) {
  return x + x.transpose(1, 2);
}

struct WithSlope {
  Tensor value, slope;
};

/// q(A) and its derivative in the symmetric direction E. The derivative of a polynomial at a symmetric matrix is a
/// symmetric map, so that this is also what a gradient E of q(A) becomes as a gradient of A: nothing is kept.
WithSlope polynomial_with_slope(Tensor A, Tensor E, int64_t steps, const Quintic& quintic) {
  if (steps == 0) return {polynomial(A, steps, quintic), torch::zeros_like(A)};
  Tensor Q, dQ;
  for (int64_t step = 0; step < steps; ++step) {
    const Tensor P = quintic_of(A, quintic);
    const Tensor dP = with_transpose(torch::baddbmm(E, A, E, quintic[1] / 2, quintic[2]));
    dQ = step == 0 ? dP : torch::bmm(P, dQ).baddbmm_(dP, Q);
    Q = step == 0 ? P : torch::bmm(P, Q);
    if (step + 1 == steps) break;
    const Tensor AP = torch::bmm(A, P);
    E = with_transpose(torch::bmm(dP, AP).baddbmm_(torch::bmm(P, E), P, 1, 0.5));  // P E P is its own transpose
    A = torch::bmm(AP, P);
  }
  return {Q, dQ};
}

/// Runs work(begin, size) over N matrices m x m, as many at once as fit the second cache with what a step needs.
template <typename Work>
void in_blocks(int64_t N, int64_t m, const Work& work) {
  const int64_t size = std::max<int64_t>(1, (16 << 10) / (m * m)) * at::get_num_threads();
  for (int64_t begin = 0; begin < N; begin += size) work(begin, std::min(size, N - begin));
}

struct Scaled {
  Tensor gram, norm, divisor;  // gram / divisor^2; |X|_F and |X|_F + eps [N, 1, 1]
};

Scaled scaled(const Tensor& gram, double eps) {
  const Tensor trace = gram.diagonal(0, 1, 2).sum(-1).view({-1, 1, 1});
  const Tensor positive = trace.gt(0);
  const Tensor norm = torch::where(positive, trace, 1).sqrt() * positive;  // the slope at 0 is 0
  const Tensor divisor = norm + eps;
  return {gram / divisor.square(), norm, divisor};
}

class Factor : public torch::autograd::Function<Factor> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& gram, int64_t steps, const std::vector<double>& quintic,
                        double eps) {
    context->save_for_backward({gram});
    context->saved_data["steps"] = steps;
    context->saved_data["quintic"] = quintic;
    context->saved_data["eps"] = eps;
    Tensor factor = torch::empty_like(gram);
    in_blocks(gram.size(0), gram.size(1), [&](int64_t begin, int64_t size) {
      const Scaled s = scaled(gram.narrow(0, begin, size), eps);
      Tensor slot = factor.narrow(0, begin, size);
      torch::div_out(slot, polynomial(s.gram, steps, as_array(quintic)), s.divisor);
    });
    return factor;
  }

  /// With F = q(A) / d, A = gram / d^2, d = |X|_F + eps and J the slope of q in direction G:
  ///   J / d^3 - I (2 <J, A> + <G, q(A)>) / (2 |X|_F d^2)
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const Tensor gram = context->get_saved_variables()[0];
    const int64_t steps = context->saved_data["steps"].toInt();
    const Quintic quintic = as_array(context->saved_data["quintic"].toDoubleVector());
    const double eps = context->saved_data["eps"].toDouble();
    variable_list result(4);
    if (torch::GradMode::is_enabled()) {
      const Scaled s = scaled(gram, eps);
      const Tensor factor = polynomial(s.gram, steps, quintic) / s.divisor;
      result[0] = reference_gradients({factor}, {gram}, gradients)[0];
      return result;
    }
    Tensor out = torch::empty_like(gram);
    in_blocks(gram.size(0), gram.size(1), [&](int64_t begin, int64_t size) {
      const Tensor G = with_transpose(gradients[0].narrow(0, begin, size)) / 2;
      const Scaled s = scaled(gram.narrow(0, begin, size), eps);
      const auto [Q, J] = polynomial_with_slope(s.gram, G, steps, quintic);
      const Tensor along = (2 * J * s.gram + G * Q).sum({1, 2}, true);
      const Tensor drift = torch::where(s.norm.gt(0), along / (2 * s.norm * s.divisor.square()), 0);
      Tensor slot = out.narrow(0, begin, size);
      torch::div_out(slot, J, s.divisor.pow(3));
      slot.diagonal(0, 1, 2).sub_(drift.squeeze(-1));
    });
    result[0] = out;
    return result;
  }

 private:
  static Quintic as_array(const std::vector<double>& quintic) { return {quintic[0], quintic[1], quintic[2]}; }
};

}  // namespace

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

Tensor newton_schulz_factor(const Tensor& gram, int64_t steps, const std::array<double, 3>& quintic, double eps) {
  if (gram.dim() < 2 || gram.size(-1) != gram.size(-2)) {
    misuse("newton_schulz_factor: gram is {}, expected X X^T [..., m, m]", fmt::streamed(gram.sizes()));
  }
  if (steps < 0 || steps > kMaxSteps) {
    misuse("newton_schulz_factor: steps = {}, expected 0 .. {}; newton_schulz takes any number", steps, kMaxSteps);
  }
  if (gram.numel() == 0) return gram;
  const int64_t m = gram.size(-1);
  const Tensor factor = Factor::apply(gram.to(torch::kFloat64).reshape({-1, m, m}).contiguous(), steps,
                                      std::vector<double>(quintic.begin(), quintic.end()), eps);
  return factor.view(gram.sizes()).to(gram.scalar_type());
}

TORCH_LIBRARY_FRAGMENT(seqloom, m) {
  define(m,
         "newton_schulz(Tensor x, int steps=5, float[3] quintic=[3.4445, -4.775, 2.0315], float eps=1e-07) -> Tensor",
         [](const Tensor& x, int64_t steps, const std::vector<double>& quintic, double eps) {
           return newton_schulz(x, steps, {quintic[0], quintic[1], quintic[2]}, eps);
         });
  define(m,
         "newton_schulz_factor(Tensor gram, int steps=5, float[3] quintic=[3.4445, -4.775, 2.0315], float eps=1e-07) "
         "-> Tensor",
         [](const Tensor& gram, int64_t steps, const std::vector<double>& quintic, double eps) {
           return newton_schulz_factor(gram, steps, {quintic[0], quintic[1], quintic[2]}, eps);
         });
}

}  // namespace seqloom::ops
