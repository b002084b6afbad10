#include "ops/rms_norm.h"

#include <fmt/ostream.h>

#include <cmath>

#include "base/error.h"
#include "ops/cpu/rms_norm.h"
#include "ops/cpu/row_walk.h"
#include "ops/fused.h"
#include "ops/operator.h"
#include "ops/precision.h"
#include "ops/reference_gradient.h"

namespace seqloom::ops {
namespace {

using cpu::NormGate;
using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Tensor plain(const Tensor& x, const Tensor& weight, double eps) {
  return x * torch::rsqrt(x.square().mean(-1, /*keepdim=*/true) + eps) * weight;
}

Tensor reference(const Tensor& x, const Tensor& z, const Tensor& weight, double eps, NormGate gate) {
  const Tensor wide = widened(x), w = widened(weight);
  if (gate == NormGate::kNone) return plain(wide, w, eps).to(x.scalar_type());
  const Tensor open = torch::silu(widened(z));
  const Tensor y = gate == NormGate::kAfter ? plain(wide, w, eps) * open : plain(wide * open, w, eps);
  return y.to(x.scalar_type());
}

/// x, z and weight as the kernel takes them.
class FusedNorm : public torch::autograd::Function<FusedNorm> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x, const std::optional<Tensor>& z, const Tensor& weight,
                        double eps, int64_t gate) {
    const cpu::NormInputs in{x, z.value_or(Tensor()), weight, eps, static_cast<NormGate>(gate)};
    const auto [y, factors] = cpu::rms_norm_forward(in);
    context->save_for_backward({in.x, in.z, in.weight, factors});
    context->saved_data["eps"] = eps;
    context->saved_data["gate"] = gate;
    return y;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto s = context->get_saved_variables();
    const double eps = context->saved_data["eps"].toDouble();
    const auto gate = static_cast<NormGate>(context->saved_data["gate"].toInt());
    if (torch::GradMode::is_enabled()) {
      variable_list all = reference_gradients({reference(s[0], s[1], s[2], eps, gate)}, {s[0], s[1], s[2]}, gradients);
      all.resize(5);
      return all;
    }
    const auto g = cpu::rms_norm_backward({s[0], s[1], s[2], eps, gate}, s[3], cpu::dense_rows(gradients[0]));
    return {g.x, g.z, g.weight, Tensor(), Tensor()};
  }
};

bool kernel_takes(const Tensor& x, const Tensor& z, const Tensor& weight) {
  return x.scalar_type() != torch::kHalf && x.numel() > 0 && x.dim() <= cpu::RowWalk::kDims && fusable({x, z, weight});
}

void check_shapes(const Tensor& x, const Tensor& z, const Tensor& weight) {
  const bool fits = weight.dim() >= 1 && weight.dim() <= x.dim() &&
                    weight.sizes() == x.sizes().slice(x.dim() - weight.dim(), weight.dim());
  if (!fits) {
    misuse("rms_norm: weight is {}, expected the trailing dimensions of x {}", fmt::streamed(weight.sizes()),
           fmt::streamed(x.sizes()));
  }
  if (z.defined() && z.sizes() != x.sizes()) {
    misuse("rms_norm: the gate is {}, expected {} as x", fmt::streamed(z.sizes()), fmt::streamed(x.sizes()));
  }
}

Tensor norm(const Tensor& x, const Tensor& z, const Tensor& weight, double eps, NormGate gate) {
  check_shapes(x, z, weight);
  if (!kernel_takes(x, z, weight)) return reference(x, z, weight, eps, gate);
  const bool one_type = !z.defined() || z.scalar_type() == x.scalar_type();
  const auto rows = [&](const Tensor& t) { return cpu::dense_rows(one_type ? t : widened(t)); };
  const Tensor w = widened(weight).contiguous(), gated = z.defined() ? rows(z) : z;
  const Tensor y = wants_gradient({x, z, weight})
                       ? FusedNorm::apply(rows(x), z.defined() ? std::make_optional(gated) : std::nullopt, w, eps,
                                          static_cast<int64_t>(gate))
                       : cpu::rms_norm_forward({rows(x), gated, w, eps, gate}).first;
  return y.to(x.scalar_type());
}

}  // namespace

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  return norm(x, {}, weight, eps, NormGate::kNone);
}

Tensor gated_rms_norm(const Tensor& x, const Tensor& z, const Tensor& weight, double eps, bool norm_before_gate) {
  return norm(x, z, weight, eps, norm_before_gate ? NormGate::kAfter : NormGate::kBefore);
}

Tensor l2_norm(const Tensor& x, double eps) {
  const Tensor wide = widened(x);
  if (x.dim() > 0 && kernel_takes(x, {}, wide)) {  // the sum is n times the mean: an RMS norm with one weight for all
    const auto n = static_cast<double>(x.size(-1));
    const Tensor weight = torch::full({x.size(-1)}, 1 / std::sqrt(n), torch::dtype(torch::kFloat32));
    return norm(x, {}, weight, eps / n, NormGate::kNone);
  }
  return (wide * torch::rsqrt(wide.square().sum(-1, /*keepdim=*/true) + eps)).to(x.scalar_type());
}

TORCH_LIBRARY_FRAGMENT(seqloom, m) {
  define(m, "rms_norm(Tensor x, Tensor weight, float eps=1e-05) -> Tensor", &rms_norm);
  define(m, "gated_rms_norm(Tensor x, Tensor z, Tensor weight, float eps=1e-05, bool norm_before_gate=True) -> Tensor",
         &gated_rms_norm);
}

}  // namespace seqloom::ops
