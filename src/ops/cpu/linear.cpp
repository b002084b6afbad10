#include "ops/cpu/linear.h"

#include <ATen/Parallel.h>

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/linear.cpp"
#include <hwy/foreach_target.h>
// clang-format off: must follow foreach_target
#include <hwy/cache_control.h>
#include <hwy/highway.h>
#include "ops/cpu/vector_io-inl.h"
// clang-format on

#ifndef SEQLOOM_LINEAR_ROWS
#define SEQLOOM_LINEAR_ROWS
namespace seqloom::ops::cpu {

/// How many output rows are made at once: their weights are as many streams from memory.
constexpr size_t kStreams = 4;

/// The operands of y [rows, out]; W is float, the bits of a bfloat16, or int8_t.
template <typename W>
struct LinearRows {
  const float* x;
  const W* weight;
  const float *scale, *bias;
  float* y;
  size_t rows, in, out, weight_stride, groups;
  size_t ahead;  // how many entries further on weights are fetched, a whole number of blocks of rows
};

}  // namespace seqloom::ops::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace seqloom::ops::cpu::HWY_NAMESPACE {

const hn::ScalableTag<float> kTag;
using Vector = hn::Vec<decltype(kTag)>;

/// Rows of x at once: kStreams x kTogether sums stay in registers beside the weights.
#if HWY_TARGET <= HWY_AVX3 || !HWY_ARCH_X86
constexpr size_t kTogether = 4;
#else
constexpr size_t kTogether = 2;
#endif

HWY_INLINE Vector LoadWeights(const float* from) {
  return hn::LoadU(kTag, from);
}
HWY_INLINE Vector LoadWeights(const Bfloat16* from) {
  return LoadFirst(kTag, from, hn::Lanes(kTag));
}
HWY_INLINE Vector LoadWeights(const int8_t* from) {
  const hn::Rebind<int8_t, decltype(kTag)> d8;
  const hn::Rebind<int32_t, decltype(kTag)> d32;
  return hn::ConvertTo(kTag, hn::PromoteTo(d32, hn::LoadU(d8, from)));
}

template <typename W>
HWY_INLINE Vector LoadFewWeights(const W* from, size_t count) {
  HWY_ALIGN W buffer[hn::MaxLanes(kTag)] = {};
  std::copy_n(from, count, buffer);
  return LoadWeights(buffer);
}

/// sums[s][m] += the products of columns [begin, end) of `Streams` weight rows with `Rows` rows of x. The weights are
/// multiplied by factors[s] where they have one for each group.
template <size_t Streams, size_t Rows, bool kGrouped, typename W>
HWY_INLINE void AddColumns(const LinearRows<W>& in, const W* weight, const float* x, size_t begin, size_t end,
                           const Vector* factors, Vector (&sums)[Streams][Rows]) {
  const size_t lanes = hn::Lanes(kTag);
  const auto add = [&](size_t i, auto load_weights, auto load_x) HWY_ATTR {
    Vector w[Streams];
    for (size_t s = 0; s < Streams; ++s) {
      w[s] = load_weights(weight + s * in.weight_stride + i);
      if constexpr (kGrouped) w[s] = hn::Mul(w[s], factors[s]);
    }
    for (size_t m = 0; m < Rows; ++m) {
      const Vector values = load_x(x + m * in.in + i);
      for (size_t s = 0; s < Streams; ++s) sums[s][m] = hn::MulAdd(w[s], values, sums[s][m]);
    }
  };
  size_t i = begin;
  for (; i + lanes <= end; i += lanes) {
    // the lines of a block further on come while this one is multiplied
    for (size_t s = 0; s < Streams; ++s) hwy::Prefetch(weight + s * in.weight_stride + i + in.ahead);
    add(
        i, [](const W* from) HWY_ATTR { return LoadWeights(from); },
        [](const float* from) HWY_ATTR { return hn::LoadU(kTag, from); });
  }
  if (i == end) return;
  const size_t rest = end - i;
  add(
      i, [rest](const W* from) HWY_ATTR { return LoadFewWeights(from, rest); },
      [rest](const float* from) HWY_ATTR { return LoadFewWeights(from, rest); });
}

/// y [m, o + s] for `Streams` output rows from o and `Rows` rows of x from m.
template <size_t Streams, size_t Rows, typename W>
void Block(const LinearRows<W>& in, size_t o, size_t m0) {
  const W* weight = in.weight + o * in.weight_stride;
  const float* x = in.x + m0 * in.in;
  Vector sums[Streams][Rows];
  for (auto& row : sums) {
    for (auto& sum : row) sum = hn::Zero(kTag);
  }
  if (in.groups > 1) {
    const size_t group = in.in / in.groups;
    for (size_t g = 0; g < in.groups; ++g) {
      Vector factors[Streams];
      for (size_t s = 0; s < Streams; ++s) factors[s] = hn::Set(kTag, in.scale[(o + s) * in.groups + g]);
      AddColumns<Streams, Rows, true>(in, weight, x, g * group, (g + 1) * group, factors, sums);
    }
  } else {
    AddColumns<Streams, Rows, false>(in, weight, x, 0, in.in, nullptr, sums);
  }
  for (size_t s = 0; s < Streams; ++s) {
    const Vector factor = hn::Set(kTag, in.scale != nullptr && in.groups == 1 ? in.scale[o + s] : 1);
    const Vector bias = hn::Set(kTag, in.bias != nullptr ? in.bias[o + s] : 0);
    for (size_t m = 0; m < Rows; ++m) {  // explicitly fused: the compiler would fuse in some of the blocks only
      in.y[(m0 + m) * in.out + o + s] = hn::GetLane(hn::MulAdd(hn::SumOfLanes(kTag, sums[s][m]), factor, bias));
    }
  }
}

template <size_t Streams, typename W>
void AllRows(const LinearRows<W>& in, size_t o) {
  size_t m = 0;
  for (; m + kTogether <= in.rows; m += kTogether) Block<Streams, kTogether>(in, o, m);
  const size_t rest = in.rows - m;
  if (rest == 1) Block<Streams, 1>(in, o, m);
  if constexpr (kTogether > 2) {
    if (rest == 2) Block<Streams, 2>(in, o, m);
    if (rest == 3) Block<Streams, 3>(in, o, m);
  }
}

/// Output rows [first, last).
template <typename W>
void Linear(const LinearRows<W>& in, size_t first, size_t last) {
  size_t o = first;
  for (; o + kStreams <= last; o += kStreams) AllRows<kStreams>(in, o);
  for (; o < last; ++o) AllRows<1>(in, o);
}

/// out [rows, in] = weight * scale, row by row.
void DenseInt8(const int8_t* weight, const float* scale, size_t in, size_t groups, float* out) {
  const size_t lanes = hn::Lanes(kTag), group = in / groups;
  for (size_t g = 0; g < groups; ++g) {
    const Vector factor = hn::Set(kTag, scale[g]);
    size_t i = g * group;
    const size_t end = i + group;
    for (; i + lanes <= end; i += lanes) hn::StoreU(hn::Mul(LoadWeights(weight + i), factor), kTag, out + i);
    for (; i < end; ++i) out[i] = static_cast<float>(weight[i]) * scale[g];
  }
}

void LinearFloat(const LinearRows<float>& in, size_t first, size_t last) {
  Linear(in, first, last);
}
void LinearBfloat16(const LinearRows<uint16_t>& in, size_t first, size_t last) {
  Linear(in, first, last);
}
void LinearInt8(const LinearRows<int8_t>& in, size_t first, size_t last) {
  Linear(in, first, last);
}

}  // namespace seqloom::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace seqloom::ops::cpu {

HWY_EXPORT(LinearFloat);
HWY_EXPORT(LinearBfloat16);
HWY_EXPORT(LinearInt8);
HWY_EXPORT(DenseInt8);

namespace {

void multiply(const LinearRows<float>& rows, size_t first, size_t last) {
  HWY_DYNAMIC_DISPATCH(LinearFloat)(rows, first, last);
}
void multiply(const LinearRows<uint16_t>& rows, size_t first, size_t last) {
  HWY_DYNAMIC_DISPATCH(LinearBfloat16)(rows, first, last);
}
void multiply(const LinearRows<int8_t>& rows, size_t first, size_t last) {
  HWY_DYNAMIC_DISPATCH(LinearInt8)(rows, first, last);
}

const float* floats(const torch::Tensor& t) {
  return t.defined() ? t.const_data_ptr<float>() : nullptr;
}

/// A thread is worth waking for so many bytes of weights.
constexpr int64_t kTaskBytes = 1 << 18;
/// What is under way from memory: short rows are fetched more than a block ahead.
constexpr int64_t kAheadBytes = 1 << 14;

template <typename W>
void run(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& scale, const torch::Tensor& bias,
         const torch::Tensor& y) {
  LinearRows<W> rows{};
  rows.x = x.const_data_ptr<float>();
  rows.weight = static_cast<const W*>(weight.const_data_ptr());
  rows.scale = floats(scale), rows.bias = floats(bias);
  rows.y = y.data_ptr<float>();
  rows.rows = static_cast<size_t>(x.size(0)), rows.in = static_cast<size_t>(x.size(1));
  rows.out = static_cast<size_t>(weight.size(0)), rows.weight_stride = static_cast<size_t>(weight.stride(0));
  rows.groups = scale.defined() ? static_cast<size_t>(scale.size(1)) : 1;
  const auto streams = static_cast<int64_t>(kStreams), out = weight.size(0), block = streams * weight.stride(0);
  const int64_t blocks = std::max<int64_t>(1, kAheadBytes / (block * static_cast<int64_t>(sizeof(W))));
  rows.ahead = static_cast<size_t>(blocks * block);
  const int64_t block_bytes =
      streams * x.size(1) * static_cast<int64_t>(sizeof(W)) * std::max<int64_t>(1, x.size(0) / 4);
  at::parallel_for(0, (out + streams - 1) / streams, std::max<int64_t>(1, kTaskBytes / block_bytes),
                   [&](int64_t first, int64_t last) {
                     multiply(rows, static_cast<size_t>(first * streams),
                              static_cast<size_t>(std::min(out, last * streams)));
                   });
}

}  // namespace

torch::Tensor linear(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& scale,
                     const torch::Tensor& bias) {
  torch::Tensor y = torch::empty({x.size(0), weight.size(0)}, x.options());
  const auto type = weight.scalar_type();
  const auto kernel = type == torch::kInt8 ? run<int8_t> : type == torch::kBFloat16 ? run<uint16_t> : run<float>;
  kernel(x, weight, scale, bias, y);
  return y;
}

torch::Tensor dense_weight(const torch::Tensor& weight, const torch::Tensor& scale) {
  torch::Tensor dense = torch::empty(weight.sizes(), scale.options());
  const auto* from = weight.const_data_ptr<int8_t>();
  const float* factors = scale.const_data_ptr<float>();
  float* to = dense.data_ptr<float>();
  const int64_t in = weight.size(1), groups = scale.size(1), stride = weight.stride(0);
  at::parallel_for(0, weight.size(0), std::max<int64_t>(1, 32768 / in), [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      HWY_DYNAMIC_DISPATCH(DenseInt8)
      (from + row * stride, factors + row * groups, static_cast<size_t>(in), static_cast<size_t>(groups),
       to + row * in);
    }
  });
  return dense;
}

}  // namespace seqloom::ops::cpu
#endif  // HWY_ONCE
