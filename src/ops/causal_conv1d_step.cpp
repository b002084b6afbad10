#include "ops/causal_conv1d_step.h"

#include <fmt/ostream.h>
#include <torch/library.h>

#include "base/error.h"
#include "ops/cpu/causal_conv1d_step.h"
#include "ops/fused.h"
#include "ops/operator.h"
#include "ops/precision.h"
#include "ops/reference_gradient.h"
#include "ops/step_states.h"

namespace seqloom::ops {
namespace {

using torch::Tensor;
using Optional = std::optional<Tensor>;

void check_shapes(const Tensor& x, const Tensor& weight, const Optional& bias, at::TensorList windows) {
  if (x.dim() != 2 || weight.dim() != 2 || weight.size(0) != x.size(1) || weight.size(1) < 1) {
    misuse("causal_conv1d_step: x {}, weight {}: expected x [R, E] and weight [E, W]", fmt::streamed(x.sizes()),
           fmt::streamed(weight.sizes()));
  }
  if (bias && (bias->dim() != 1 || bias->size(0) != x.size(1))) {
    misuse("causal_conv1d_step: bias is {}, expected [{}]", fmt::streamed(bias->sizes()), x.size(1));
  }
  check_states("causal_conv1d_step", windows, x.size(0), {1, x.size(1), weight.size(1) - 1});
}

Tensor reference(const Tensor& x, const Tensor& weight, const Optional& bias, at::TensorList windows, bool silu) {
  std::vector<Tensor> rows;
  for (int64_t r = 0; r < x.size(0); ++r) {
    const Tensor& window = windows[r];
    const Tensor inputs = torch::cat({window[0], widened(x[r]).to(window.scalar_type()).unsqueeze(1)}, 1);  // [E, W]
    Tensor y = (inputs * widened(weight)).sum(1);
    if (bias) y = y + widened(*bias);
    rows.push_back(silu ? torch::silu(y) : y);
    window[0].copy_(inputs.narrow(1, 1, window.size(2)));
  }
  return torch::stack(rows).to(x.scalar_type());
}

}  // namespace

Tensor causal_conv1d_step(const Tensor& x, const Tensor& weight, const Optional& bias, at::TensorList windows,
                          bool silu) {
  check_shapes(x, weight, bias, windows);
  if (x.numel() == 0) return x.clone();
  const Tensor offset = bias.value_or(Tensor());
  if (!fusable({x, weight, offset}) || wants_gradient({x, weight, offset}) || !states_fusable(windows, 1)) {
    return reference(x, weight, bias, windows, silu);
  }
  const Tensor rows = dense_rows_of(x), taps = widened(weight).t().contiguous();
  const Tensor plain = offset.defined() ? widened(offset).contiguous() : offset;
  Tensor y = torch::empty(x.sizes(), rows.options());
  cpu::causal_conv1d_step(rows, taps, plain, pointers_of(windows), silu, y);
  return y.to(x.scalar_type());
}

TORCH_LIBRARY_FRAGMENT(seqloom, m) {
  define_update(
      m, "causal_conv1d_step(Tensor x, Tensor weight, Tensor? bias, Tensor(a!)[] windows, bool silu=False) -> Tensor",
      [](const Tensor& x, const Tensor& weight, const Optional& bias, at::TensorList windows, bool silu) {
        return causal_conv1d_step(x, weight, bias, windows, silu);
      });
}

}  // namespace seqloom::ops
