#include "ops/cpu/rotary.h"

#include <ATen/Parallel.h>

#include "ops/cpu/row_walk.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/rotary.cpp"
#include <hwy/foreach_target.h>
// clang-format off: must follow foreach_target
#include <hwy/highway.h>
#include "ops/cpu/vector_io-inl.h"
// clang-format on

#ifndef SEQLOOM_ROTARY_ROWS
#define SEQLOOM_ROTARY_ROWS
namespace seqloom::ops::cpu {

/// x and y [rows, width], the first `turned` channels of which are rotated; cos and sin are walked alike.
template <typename T>
struct RotaryRows {
  const T* x;
  T* y;
  const float *cos, *sin;
  RowWalk x_rows, y_rows, angle_rows;
  size_t turned, width;
  bool interleaved;
};

}  // namespace seqloom::ops::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace seqloom::ops::cpu::HWY_NAMESPACE {

const hn::ScalableTag<float> kTag;
using Vector = hn::Vec<decltype(kTag)>;

/// Pairs (m, m + pairs), in the lanes.
template <typename T>
void RotateHalves(const T* x, const float* cos, const float* sin, size_t pairs, T* y) {
  for (size_t i = 0; i < pairs; i += hn::Lanes(kTag)) {
    const size_t rest = pairs - i;
    const Vector a = LoadFirst(kTag, x + i, rest), b = LoadFirst(kTag, x + pairs + i, rest);
    const Vector c = LoadFirst(kTag, cos + i, rest), s = LoadFirst(kTag, sin + i, rest);
    StoreFirst(kTag, hn::NegMulAdd(b, s, hn::Mul(a, c)), y + i, rest);
    StoreFirst(kTag, hn::MulAdd(a, s, hn::Mul(b, c)), y + pairs + i, rest);
  }
}

/// Pairs (2m, 2m + 1), each lane with its neighbour; cos and sin have an entry a channel, sin with its sign.
template <typename T>
void RotateNeighbours(const T* x, const float* cos, const float* sin, size_t channels, T* y) {
  for (size_t i = 0; i < channels; i += hn::Lanes(kTag)) {
    const size_t rest = channels - i;
    const Vector v = LoadFirst(kTag, x + i, rest);
#if HWY_TARGET == HWY_SCALAR
    const Vector neighbour = LoadFirst(kTag, x + (i ^ 1), 1);
#else
    const Vector neighbour = hn::Reverse2(kTag, v);
#endif
    const Vector own = hn::Mul(v, LoadFirst(kTag, cos + i, rest));
    StoreFirst(kTag, hn::MulAdd(neighbour, LoadFirst(kTag, sin + i, rest), own), y + i, rest);
  }
}

template <typename T>
void Rotate(RotaryRows<T> in, size_t first, size_t last) {
  in.x_rows.seek(first), in.y_rows.seek(first), in.angle_rows.seek(first);
  for (size_t row = first; row < last; ++row) {
    const T* x = in.x + in.x_rows.offset();
    T* y = in.y + in.y_rows.offset();
    const float *cos = in.cos + in.angle_rows.offset(), *sin = in.sin + in.angle_rows.offset();
    in.interleaved ? RotateNeighbours(x, cos, sin, in.turned, y) : RotateHalves(x, cos, sin, in.turned / 2, y);
    std::copy(x + in.turned, x + in.width, y + in.turned);
    in.x_rows.next(), in.y_rows.next(), in.angle_rows.next();
  }
}

void RotateFloat(const RotaryRows<float>& in, size_t first, size_t last) {
  Rotate(in, first, last);
}
void RotateBfloat16(const RotaryRows<uint16_t>& in, size_t first, size_t last) {
  Rotate(in, first, last);
}

}  // namespace seqloom::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace seqloom::ops::cpu {

HWY_EXPORT(RotateFloat);
HWY_EXPORT(RotateBfloat16);

namespace {

void rotate(const RotaryRows<float>& rows, int64_t first, int64_t last) {
  HWY_DYNAMIC_DISPATCH(RotateFloat)(rows, first, last);
}
void rotate(const RotaryRows<uint16_t>& rows, int64_t first, int64_t last) {
  HWY_DYNAMIC_DISPATCH(RotateBfloat16)(rows, first, last);
}

template <typename T>
void run(const torch::Tensor& x, const torch::Tensor& y, const torch::Tensor& cos, const torch::Tensor& sin,
         int64_t turned, bool interleaved) {
  auto angles = x.sizes().vec();
  angles.back() = cos.size(-1);
  const RotaryRows<T> rows{static_cast<const T*>(x.data_ptr()),
                           static_cast<T*>(y.data_ptr()),
                           cos.const_data_ptr<float>(),
                           sin.const_data_ptr<float>(),
                           RowWalk(x),
                           RowWalk(y),
                           RowWalk(cos.expand(angles)),
                           static_cast<size_t>(turned),
                           static_cast<size_t>(x.size(-1)),
                           interleaved};
  at::parallel_for(0, x.numel() / x.size(-1), std::max<int64_t>(1, 32768 / x.size(-1)),
                   [&](int64_t first, int64_t last) { rotate(rows, first, last); });
}

}  // namespace

torch::Tensor rotary(const torch::Tensor& x, const torch::Tensor& cos, const torch::Tensor& sin, bool interleaved) {
  torch::Tensor y = torch::empty_like(x);
  if (y.stride(-1) != 1) y = torch::empty(x.sizes(), x.options());
  const torch::Tensor c = interleaved ? cos.repeat_interleave(2, -1) : cos;
  const torch::Tensor s = interleaved ? torch::stack({-sin, sin}, -1).flatten(-2) : sin;
  const auto kernel = x.scalar_type() == torch::kBFloat16 ? run<uint16_t> : run<float>;
  kernel(x, y, c, s, 2 * cos.size(-1), interleaved);
  return y;
}

}  // namespace seqloom::ops::cpu
#endif  // HWY_ONCE
