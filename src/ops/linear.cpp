#include "ops/linear.h"

#include <ATen/autocast_mode.h>
#include <ATen/cpu/Utils.h>

#include <fmt/ostream.h>

#include <algorithm>

#include "base/error.h"
#include "ops/cpu/linear.h"
#include "ops/fused.h"
#include "ops/operator.h"
#include "ops/precision.h"
#include "ops/reference_gradient.h"
#include "ops/row_by_row.h"

namespace seqloom::ops {
namespace {

using torch::Tensor;

void check(const Tensor& x, const Tensor& weight, const Tensor& scale, const Tensor& bias) {
  if (weight.dim() != 2 || x.dim() < 1 || x.size(-1) != weight.size(1)) {
    misuse("linear: x {}, weight {}: expected x [..., in] and weight [out, in]", fmt::streamed(x.sizes()),
           fmt::streamed(weight.sizes()));
  }
  const bool int8 = weight.scalar_type() == torch::kInt8;
  if (!x.is_floating_point() || (!int8 && !weight.is_floating_point())) {
    misuse("linear: x is {}, weight {}: expected floating types, or int8 weights", fmt::streamed(x.dtype()),
           fmt::streamed(weight.dtype()));
  }
  if (int8 != scale.defined()) misuse("linear: a scale goes with int8 weights, and only with them");
  if (int8 && (scale.dim() != 2 || scale.size(0) != weight.size(0) || scale.size(1) < 1 ||
               weight.size(1) % scale.size(1) != 0 || scale.scalar_type() != torch::kFloat32)) {
    misuse("linear: scale is {} {}, expected float32 [{}, groups] with groups that divide {}",
           fmt::streamed(scale.dtype()), fmt::streamed(scale.sizes()), weight.size(0), weight.size(1));
  }
  if (bias.defined() && (bias.dim() != 1 || bias.size(0) != weight.size(0))) {
    misuse("linear: bias is {}, expected [{}]", fmt::streamed(bias.sizes()), weight.size(0));
  }
}

/// In float32, float64 where x is.
Tensor reference(const Tensor& x, const Tensor& weight, const Tensor& scale, const Tensor& bias) {
  const Tensor wide = widened(x);
  const auto type = wide.scalar_type();
  return torch::linear(wide, dense_weight(weight, scale, type), bias.defined() ? bias.to(type) : bias)
      .to(x.scalar_type());
}

bool multiplies_bfloat16() {
  static const bool found = [] {
    auto has = at::cpu::get_cpu_capabilities();
    return has["amx_bf16"] == true || has["avx512_bf16"] == true;
  }();
  return found;
}

/// How many rows are few: from there on a GEMM is quicker, although it reads the weights as float32 or rounds x. A
/// matrix unit for bfloat16 takes hardly longer for 32 rows than for one.
int64_t most_few_rows(torch::ScalarType weight) {
  return weight == torch::kBFloat16 && multiplies_bfloat16() ? 8 : 32;
}

bool rows_are_dense(const Tensor& weight) {
  return weight.is_cpu() && weight.dim() == 2 && weight.numel() > 0 && weight.stride(1) == 1 &&
         weight.stride(0) >= weight.size(1);
}

bool kernel_takes(const Tensor& x, const Tensor& weight) {
  const auto type = weight.scalar_type();
  const bool known = type == torch::kFloat32 || type == torch::kBFloat16 || type == torch::kInt8;
  const int64_t rows = x.size(-1) > 0 ? x.numel() / x.size(-1) : 0;
  return known && rows_are_dense(weight) && fusable({x}) && rows > 0 && (RowByRow::on() || rows <= most_few_rows(type));
}

Tensor few_rows(const Tensor& x, const Tensor& weight, const Tensor& scale, const Tensor& bias) {
  const auto contiguous = [](const Tensor& t) { return t.defined() ? widened(t).contiguous() : t; };
  auto shape = x.sizes().vec();
  shape.back() = weight.size(0);
  const Tensor y = cpu::linear(contiguous(x.reshape({-1, x.size(-1)})), weight, contiguous(scale), contiguous(bias));
  return y.view(shape).to(x.scalar_type());
}

/// The weights become float32 a panel at a time, which stays in the cache while it is multiplied.
Tensor by_panels(const Tensor& x, const Tensor& weight, const Tensor& scale, const Tensor& bias) {
  constexpr int64_t kPanel = 1 << 19;  // entries
  const int64_t out = weight.size(0), step = std::max<int64_t>(64, kPanel / std::max<int64_t>(1, weight.size(1)));
  const Tensor rows = x.reshape({-1, x.size(-1)});
  Tensor y = torch::empty({rows.size(0), out}, x.options());
  for (int64_t o = 0; o < out; o += step) {
    const int64_t count = std::min(step, out - o);
    const Tensor panel =
        dense_weight(weight.narrow(0, o, count), scale.defined() ? scale.narrow(0, o, count) : scale, torch::kFloat32);
    Tensor part = y.narrow(1, o, count);
    at::mm_out(part, rows, panel.t());
  }
  if (bias.defined()) y.add_(bias);
  auto shape = x.sizes().vec();
  shape.back() = out;
  return y.view(shape);
}

Tensor many_rows(const Tensor& x, const Tensor& weight, const Tensor& scale, const Tensor& bias) {
  if (!fused_enabled() || !x.is_cpu() || x.scalar_type() != torch::kFloat32 || x.numel() == 0) {
    return reference(x, weight, scale, bias);
  }
  if (weight.scalar_type() == torch::kBFloat16 && multiplies_bfloat16()) {
    const Tensor y = torch::linear(x.to(torch::kBFloat16), weight).to(torch::kFloat32);
    return bias.defined() ? y + bias : y;
  }
  return by_panels(x, weight, scale, bias);
}

Tensor linear_op(const Tensor& x, const Tensor& weight, const Tensor& scale, const Tensor& bias) {
  check(x, weight, scale, bias);
  const bool differentiable = wants_gradient({x, weight, scale, bias});
  const bool plain = x.scalar_type() == weight.scalar_type();
  if (plain && (differentiable || at::autocast::is_autocast_enabled(x.device().type()))) {
    return torch::linear(x, weight, bias);
  }
  if (differentiable) return reference(x, weight, scale, bias);
  if (kernel_takes(x, weight)) return few_rows(x, weight, scale, bias);
  return plain ? torch::linear(x, weight, bias) : many_rows(x, weight, scale, bias);
}

}  // namespace

Tensor dense_weight(const Tensor& weight, const Tensor& scale, torch::ScalarType type) {
  if (!scale.defined()) return weight.to(type);
  const bool fused = fused_enabled() && type == torch::kFloat32 && !wants_gradient({scale});
  if (fused && rows_are_dense(weight) && scale.is_contiguous()) {
    return cpu::dense_weight(weight, scale);
  }
  return (weight.unflatten(-1, {scale.size(-1), -1}).to(type) * scale.to(type).unsqueeze(-1)).flatten(-2);
}

std::pair<Tensor, Tensor> int8_weight(const Tensor& weight, int64_t group) {
  const int64_t in = weight.size(-1), width = group > 0 && in % group == 0 ? group : in;
  const Tensor groups = weight.to(torch::kFloat32).unflatten(-1, {-1, width});
  const Tensor greatest = groups.abs().amax(-1, /*keepdim=*/true);
  if (!greatest.isfinite().all().item<bool>()) fail("int8 weights: an entry is not finite");
  const Tensor scale = greatest / 127;
  // a group of zeros, or of numbers so small that their scale is none, is zero
  const Tensor entries = torch::where(scale.gt(0), groups / scale, torch::zeros({}));
  return {entries.round().clamp(-127, 127).to(torch::kInt8).flatten(-2), scale.squeeze(-1)};
}

Tensor linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& scale,
              const std::optional<Tensor>& bias) {
  return linear_op(x, weight, scale.value_or(Tensor()), bias.value_or(Tensor()));
}

TORCH_LIBRARY_FRAGMENT(seqloom, m) {
  define(m, "linear(Tensor x, Tensor weight, Tensor? scale=None, Tensor? bias=None) -> Tensor", &linear);
}

}  // namespace seqloom::ops
