#include "ops/rotary.h"

#include <ATen/ExpandUtils.h>
#include <fmt/ostream.h>

#include "base/error.h"
#include "ops/cpu/rotary.h"
#include "ops/cpu/row_walk.h"
#include "ops/fused.h"
#include "ops/operator.h"
#include "ops/precision.h"
#include "ops/reference_gradient.h"

namespace seqloom::ops {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Tensor reference(const Tensor& x, const Tensor& cos, const Tensor& sin, bool interleaved) {
  const int64_t rotary = 2 * cos.size(-1), rest = x.size(-1) - rotary;
  const Tensor turning = widened(x).narrow(-1, 0, rotary);
  const Tensor c = cos.to(turning.scalar_type()), s = sin.to(turning.scalar_type());
  Tensor turned;
  if (interleaved) {
    const Tensor pairs = turning.unflatten(-1, {-1, 2});
    const Tensor a = pairs.select(-1, 0), b = pairs.select(-1, 1);
    turned = torch::stack({a * c - b * s, b * c + a * s}, -1).flatten(-2);
  } else {
    const auto parts = turning.chunk(2, -1);
    turned = torch::cat({parts[0] * c - parts[1] * s, parts[1] * c + parts[0] * s}, -1);
  }
  turned = turned.to(x.scalar_type());
  return rest == 0 ? turned : torch::cat({turned, x.narrow(-1, rotary, rest)}, -1);
}

/// A rotation is linear in x, and its adjoint is the rotation back: differentiable as often as one likes.
class FusedRotary : public torch::autograd::Function<FusedRotary> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& cos, const Tensor& sin,
                        bool interleaved) {
    context->save_for_backward({cos, sin});
    context->saved_data["interleaved"] = interleaved;
    return cpu::rotary(cpu::dense_rows(x), cos, sin, interleaved);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    const bool interleaved = context->saved_data["interleaved"].toBool();
    return {apply(gradients[0], saved[0], -saved[1], interleaved), Tensor(), Tensor(), Tensor()};
  }
};

bool kernel_takes(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  const auto type = x.scalar_type();
  auto rows = x.sizes().vec();
  rows.back() = cos.size(-1);
  return fused_enabled() && x.is_cpu() && cos.is_cpu() && x.numel() > 0 && x.dim() <= cpu::RowWalk::kDims &&
         (type == torch::kFloat32 || type == torch::kBFloat16) && at::is_expandable_to(cos.sizes(), rows) &&
         !wants_gradient({cos, sin});
}

}  // namespace

Tensor rotary(const Tensor& x, const Tensor& cos, const Tensor& sin, bool interleaved) {
  if (x.dim() < 1 || cos.dim() < 1 || cos.sizes() != sin.sizes() || 2 * cos.size(-1) > x.size(-1)) {
    misuse("rotary: x {}, cos {}, sin {}: expected x [..., d] and cos, sin [..., p] with 2 p <= d",
           fmt::streamed(x.sizes()), fmt::streamed(cos.sizes()), fmt::streamed(sin.sizes()));
  }
  if (!kernel_takes(x, cos, sin)) return reference(x, cos, sin, interleaved);
  const auto row = [](const Tensor& t) { return t.to(torch::kFloat32).contiguous(); };
  if (wants_gradient({x})) return FusedRotary::apply(x, row(cos), row(sin), interleaved);
  return cpu::rotary(cpu::dense_rows(x), row(cos), row(sin), interleaved);
}

TORCH_LIBRARY_FRAGMENT(seqloom, m) {
  define(m, "rotary(Tensor x, Tensor cos, Tensor sin, bool interleaved=False) -> Tensor", &rotary);
}

}  // namespace seqloom::ops
