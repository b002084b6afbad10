#include "ops/cpu/rms_norm.h"

#include <ATen/Parallel.h>

#include "ops/cpu/row_walk.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/rms_norm.cpp"
#include <hwy/foreach_target.h>
// clang-format off: must follow foreach_target
#include <hwy/aligned_allocator.h>
#include <hwy/highway.h>
#include "ops/cpu/vector_io-inl.h"
// clang-format on

#ifndef SEQLOOM_RMS_NORM_ROWS
#define SEQLOOM_RMS_NORM_ROWS
namespace seqloom::ops::cpu {

/// Rows of the inputs with where they lie; T is float or, for bfloat16, its bits.
template <typename T>
struct NormRows {
  const T *x, *z, *dy;
  const float* weight;
  RowWalk x_rows, z_rows, dy_rows, weight_rows;
  size_t n;
  float eps;
  NormGate gate;
};

/// What is written, contiguous; dweight has the shape of the weight and is added to.
template <typename T>
struct NormResults {
  T *y, *dx, *dz;
  float *factors, *dweight;
};

}  // namespace seqloom::ops::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace seqloom::ops::cpu::HWY_NAMESPACE {

const hn::ScalableTag<float> kTag;
using Vector = hn::Vec<decltype(kTag)>;

/// What is normed: x, or x silu(z), row by row into `out`. Returns the sum of its squares.
template <typename T>
float NormedInput(const T* x, const T* z, size_t n, float* out) {
  Vector squares = hn::Zero(kTag);
  for (size_t i = 0; i < n; i += hn::Lanes(kTag)) {
    Vector u = LoadFirst(kTag, x + i, n - i);
    if (z != nullptr) {
      const Vector gate = LoadFirst(kTag, z + i, n - i);
      u = hn::Mul(u, hn::Mul(gate, Sigmoid(kTag, gate)));
    }
    squares = hn::MulAdd(u, u, squares);
    hn::Store(u, kTag, out + i);
  }
  return hn::GetLane(hn::SumOfLanes(kTag, squares));
}

template <typename T>
void NormForward(NormRows<T> in, NormResults<T> out, size_t first, size_t last) {
  const size_t n = in.n, lanes = hn::Lanes(kTag);
  const auto scratch = hwy::AllocateAligned<float>(n + lanes);
  float* u = scratch.get();
  in.x_rows.seek(first), in.z_rows.seek(first), in.weight_rows.seek(first);
  for (size_t row = first; row < last; ++row, in.x_rows.next(), in.z_rows.next(), in.weight_rows.next()) {
    const T* z = in.z == nullptr ? nullptr : in.z + in.z_rows.offset();
    const float* weight = in.weight + in.weight_rows.offset();
    const float sum = NormedInput(in.x + in.x_rows.offset(), in.gate == NormGate::kBefore ? z : nullptr, n, u);
    const float factor = 1 / std::sqrt(sum / static_cast<float>(n) + in.eps);
    out.factors[row] = factor;
    const Vector scale = hn::Set(kTag, factor);
    for (size_t i = 0; i < n; i += lanes) {
      Vector y = hn::Mul(hn::Mul(hn::Load(kTag, u + i), scale), LoadFirst(kTag, weight + i, n - i));
      if (in.gate == NormGate::kAfter) {
        const Vector gate = LoadFirst(kTag, z + i, n - i);
        y = hn::Mul(y, hn::Mul(gate, Sigmoid(kTag, gate)));
      }
      StoreFirst(kTag, y, out.y + row * n + i, n - i);
    }
  }
}

/// The gradient of silu at z, s (1 + z (1 - s)), with s = sigmoid(z).
HWY_INLINE Vector SiluSlope(Vector z, Vector s) {
  const Vector one = hn::Set(kTag, 1.0f);
  return hn::Mul(s, hn::MulAdd(z, hn::Sub(one, s), one));
}

/// First pass over a row: what = u factor into `normed`, dy (behind a gate that stands after) times the weight into
/// `pulled`, dz of that gate, dweight. Returns sum(pulled normed).
template <typename T>
float PullBack(const T* dy, const T* z, const float* weight, float factor, size_t n, float* normed, float* pulled,
               T* dz, float* dweight) {
  const Vector scale = hn::Set(kTag, factor);
  Vector sum = hn::Zero(kTag);
  for (size_t i = 0; i < n; i += hn::Lanes(kTag)) {
    const Vector u = hn::Mul(hn::Load(kTag, normed + i), scale), w = LoadFirst(kTag, weight + i, n - i);
    Vector gradient = LoadFirst(kTag, dy + i, n - i);
    if (z != nullptr) {
      const Vector gate = LoadFirst(kTag, z + i, n - i), s = Sigmoid(kTag, gate);
      StoreFirst(kTag, hn::Mul(hn::Mul(gradient, hn::Mul(u, w)), SiluSlope(gate, s)), dz + i, n - i);
      gradient = hn::Mul(gradient, hn::Mul(gate, s));
    }
    StoreFirst(kTag, hn::MulAdd(gradient, u, LoadFirst(kTag, dweight + i, n - i)), dweight + i, n - i);
    gradient = hn::Mul(gradient, w);
    sum = hn::MulAdd(gradient, u, sum);
    hn::Store(u, kTag, normed + i);
    hn::Store(gradient, kTag, pulled + i);
  }
  return hn::GetLane(hn::SumOfLanes(kTag, sum));
}

/// Second pass: du = factor (pulled - normed mean(pulled normed)), and through a gate that stands before to dx and dz.
template <typename T>
void PushOut(const T* x, const T* z, const float* normed, const float* pulled, float factor, float mean, size_t n,
             T* dx, T* dz) {
  const Vector scale = hn::Set(kTag, factor), part = hn::Set(kTag, mean);
  for (size_t i = 0; i < n; i += hn::Lanes(kTag)) {
    Vector du = hn::Mul(scale, hn::NegMulAdd(part, hn::Load(kTag, normed + i), hn::Load(kTag, pulled + i)));
    if (z != nullptr) {
      const Vector gate = LoadFirst(kTag, z + i, n - i), s = Sigmoid(kTag, gate);
      StoreFirst(kTag, hn::Mul(hn::Mul(du, LoadFirst(kTag, x + i, n - i)), SiluSlope(gate, s)), dz + i, n - i);
      du = hn::Mul(du, hn::Mul(gate, s));
    }
    StoreFirst(kTag, du, dx + i, n - i);
  }
}

template <typename T>
void NormBackward(NormRows<T> in, NormResults<T> out, size_t first, size_t last) {
  const size_t n = in.n, padded = n + hn::Lanes(kTag);
  const auto scratch = hwy::AllocateAligned<float>(2 * hwy::RoundUpTo(padded, 64));
  float *normed = scratch.get(), *pulled = normed + hwy::RoundUpTo(padded, 64);
  const bool before = in.gate == NormGate::kBefore, after = in.gate == NormGate::kAfter;
  in.x_rows.seek(first), in.z_rows.seek(first), in.weight_rows.seek(first), in.dy_rows.seek(first);
  for (size_t row = first; row < last; ++row) {
    const T *x = in.x + in.x_rows.offset(), *z = in.z == nullptr ? nullptr : in.z + in.z_rows.offset();
    T *dx = out.dx + row * n, *dz = z == nullptr ? nullptr : out.dz + row * n;
    const int64_t weight = in.weight_rows.offset();
    NormedInput(x, before ? z : nullptr, n, normed);
    const float factor = out.factors[row];
    const float sum = PullBack(in.dy + in.dy_rows.offset(), after ? z : nullptr, in.weight + weight, factor, n, normed,
                               pulled, dz, out.dweight + weight);
    PushOut(x, before ? z : nullptr, normed, pulled, factor, sum / static_cast<float>(n), n, dx, dz);
    in.x_rows.next(), in.z_rows.next(), in.weight_rows.next(), in.dy_rows.next();
  }
}

void NormForwardFloat(const NormRows<float>& in, const NormResults<float>& out, size_t first, size_t last) {
  NormForward(in, out, first, last);
}
void NormForwardBfloat16(const NormRows<uint16_t>& in, const NormResults<uint16_t>& out, size_t first, size_t last) {
  NormForward(in, out, first, last);
}
void NormBackwardFloat(const NormRows<float>& in, const NormResults<float>& out, size_t first, size_t last) {
  NormBackward(in, out, first, last);
}
void NormBackwardBfloat16(const NormRows<uint16_t>& in, const NormResults<uint16_t>& out, size_t first, size_t last) {
  NormBackward(in, out, first, last);
}

}  // namespace seqloom::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace seqloom::ops::cpu {

HWY_EXPORT(NormForwardFloat);
HWY_EXPORT(NormForwardBfloat16);
HWY_EXPORT(NormBackwardFloat);
HWY_EXPORT(NormBackwardBfloat16);

namespace {

void forward(const NormRows<float>& in, const NormResults<float>& out, int64_t first, int64_t last) {
  HWY_DYNAMIC_DISPATCH(NormForwardFloat)(in, out, first, last);
}
void forward(const NormRows<uint16_t>& in, const NormResults<uint16_t>& out, int64_t first, int64_t last) {
  HWY_DYNAMIC_DISPATCH(NormForwardBfloat16)(in, out, first, last);
}
void backward(const NormRows<float>& in, const NormResults<float>& out, int64_t first, int64_t last) {
  HWY_DYNAMIC_DISPATCH(NormBackwardFloat)(in, out, first, last);
}
void backward(const NormRows<uint16_t>& in, const NormResults<uint16_t>& out, int64_t first, int64_t last) {
  HWY_DYNAMIC_DISPATCH(NormBackwardBfloat16)(in, out, first, last);
}

template <typename T>
T* data(const torch::Tensor& t) {
  return t.defined() ? static_cast<T*>(t.data_ptr()) : nullptr;
}

/// Rows of one task: about 32k elements. Fixed by the shape, so that sums do not depend on the number of threads.
int64_t task_rows(const NormInputs& in) {
  return std::max<int64_t>(1, 32768 / in.x.size(-1));
}

template <typename T>
NormRows<T> rows_of(const NormInputs& in, const torch::Tensor& dy) {
  const auto walk = [](const torch::Tensor& t) { return t.defined() ? RowWalk(t) : RowWalk(); };
  return {data<const T>(in.x),
          data<const T>(in.z),
          data<const T>(dy),
          in.weight.const_data_ptr<float>(),
          walk(in.x),
          walk(in.z),
          walk(dy),
          walk(in.weight.expand_as(in.x)),
          static_cast<size_t>(in.x.size(-1)),
          static_cast<float>(in.eps),
          in.gate};
}

template <typename T>
void run_forward(const NormInputs& in, const torch::Tensor& y, const torch::Tensor& factors) {
  const NormRows<T> rows = rows_of<T>(in, {});
  const NormResults<T> out{data<T>(y), nullptr, nullptr, data<float>(factors), nullptr};
  at::parallel_for(0, factors.numel(), task_rows(in),
                   [&](int64_t first, int64_t last) { forward(rows, out, first, last); });
}

template <typename T>
void run_backward(const NormInputs& in, const torch::Tensor& factors, const torch::Tensor& dy, const NormGradients& g,
                  const torch::Tensor& sums) {
  const NormRows<T> rows = rows_of<T>(in, dy);
  const int64_t step = task_rows(in), total = factors.numel(), weights = in.weight.numel();
  at::parallel_for(0, sums.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const NormResults<T> out{nullptr, data<T>(g.x), data<T>(g.z), data<float>(factors),
                               data<float>(sums) + task * weights};
      backward(rows, out, task * step, std::min(total, (task + 1) * step));
    }
  });
}

}  // namespace

std::pair<torch::Tensor, torch::Tensor> rms_norm_forward(const NormInputs& in) {
  const torch::Tensor y = torch::empty(in.x.sizes(), in.x.options());
  const torch::Tensor factors = torch::empty({in.x.numel() / in.x.size(-1)}, in.weight.options());
  const bool narrow = in.x.scalar_type() == torch::kBFloat16;
  (narrow ? run_forward<uint16_t> : run_forward<float>)(in, y, factors);
  return {y, factors};
}

NormGradients rms_norm_backward(const NormInputs& in, const torch::Tensor& factors, const torch::Tensor& dy) {
  NormGradients g;
  g.x = torch::empty(in.x.sizes(), in.x.options());
  if (in.z.defined()) g.z = torch::empty(in.x.sizes(), in.x.options());
  const int64_t step = task_rows(in), tasks = (factors.numel() + step - 1) / step;
  const torch::Tensor sums = torch::zeros({tasks, in.weight.numel()}, in.weight.options());
  const bool narrow = in.x.scalar_type() == torch::kBFloat16;
  (narrow ? run_backward<uint16_t> : run_backward<float>)(in, factors, dy, g, sums);
  g.weight = sums.sum(0).view(in.weight.sizes());
  return g;
}

}  // namespace seqloom::ops::cpu
#endif  // HWY_ONCE
