#include "ops/cpu/causal_conv1d_step.h"

#include <ATen/Parallel.h>

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/causal_conv1d_step.cpp"
#include <hwy/foreach_target.h>
// clang-format off: must follow foreach_target
#include <hwy/highway.h>
#include "ops/cpu/vector_math-inl.h"
// clang-format on

#ifndef SEQLOOM_CONV_STEP
#define SEQLOOM_CONV_STEP
namespace seqloom::ops::cpu {

struct ConvStep {
  const float* x;
  size_t x_stride;
  const float *taps, *bias;
  float* const* windows;
  float* y;
  size_t rows, channels, width;
  bool silu;
};

}  // namespace seqloom::ops::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace seqloom::ops::cpu::HWY_NAMESPACE {

const hn::ScalableTag<float> kTag;
using Vector = hn::Vec<decltype(kTag)>;

/// Channels c .. c + count, at most a vector of them, of all rows in their order.
void ConvLanes(const ConvStep& in, size_t c, size_t count) {
  const size_t before = in.width - 1;
  for (size_t r = 0; r < in.rows; ++r) {
    float* window = in.windows[r] + c;
    const Vector x = LoadFirst(kTag, in.x + r * in.x_stride + c, count);
    Vector y = in.bias == nullptr ? hn::Zero(kTag) : LoadFirst(kTag, in.bias + c, count);
    for (size_t j = 0; j < before; ++j) {
      const Vector old = LoadFirst(kTag, window + j * in.channels, count);
      y = hn::MulAdd(LoadFirst(kTag, in.taps + j * in.channels + c, count), old, y);
      if (j > 0) StoreFirst(kTag, old, window + (j - 1) * in.channels, count);
    }
    y = hn::MulAdd(LoadFirst(kTag, in.taps + before * in.channels + c, count), x, y);
    if (before > 0) StoreFirst(kTag, x, window + (before - 1) * in.channels, count);
    StoreFirst(kTag, in.silu ? hn::Mul(y, Sigmoid(kTag, y)) : y, in.y + r * in.channels + c, count);
  }
}

void ConvStepChannels(const ConvStep& in, size_t begin, size_t end) {
  for (size_t c = begin; c < end; c += hn::Lanes(kTag)) ConvLanes(in, c, std::min(hn::Lanes(kTag), end - c));
}

}  // namespace seqloom::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace seqloom::ops::cpu {

HWY_EXPORT(ConvStepChannels);

void causal_conv1d_step(const torch::Tensor& x, const torch::Tensor& taps, const torch::Tensor& bias,
                        const std::vector<float*>& windows, bool silu, torch::Tensor& y) {
  const ConvStep in{x.const_data_ptr<float>(),
                    static_cast<size_t>(x.stride(0)),
                    taps.const_data_ptr<float>(),
                    bias.defined() ? bias.const_data_ptr<float>() : nullptr,
                    windows.data(),
                    y.mutable_data_ptr<float>(),
                    windows.size(),
                    static_cast<size_t>(x.size(1)),
                    static_cast<size_t>(taps.size(0)),
                    silu};
  constexpr int64_t kBlock = 64, kWork = 1 << 15;  // channels of a block; what pays to give to another thread
  const int64_t blocks = (x.size(1) + kBlock - 1) / kBlock;
  const int64_t cost = kBlock * x.size(0) * taps.size(0);
  at::parallel_for(0, blocks, std::max<int64_t>(1, kWork / cost), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(ConvStepChannels)
    (in, static_cast<size_t>(begin * kBlock), std::min(in.channels, static_cast<size_t>(end * kBlock)));
  });
}

}  // namespace seqloom::ops::cpu
#endif  // HWY_ONCE
