#include <algorithm>

#include "ops/cpu/causal_conv1d.h"
#include "ops/cpu/causal_conv1d_rows.h"
#include "ops/cpu/scratch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/causal_conv1d_kernel.cpp"
#include <hwy/foreach_target.h>
// clang-format off: must follow foreach_target
#include <hwy/cache_control.h>
#include <hwy/highway.h>
#include "ops/cpu/vector_io-inl.h"
#include "ops/cpu/vector_math-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace seqloom::ops::cpu::HWY_NAMESPACE {

// Channels in the lanes. A tile of a few rows is read across all channels; what a vector of channels needs of the rows
// before it stays in registers, its oldest input first. Input i of a sequence is row i of [state; x], output t has the
// inputs t .. t + W - 1.
const hn::CappedTag<float, 16> kTag;
using Vector = hn::Vec<decltype(kTag)>;
constexpr size_t kLanes = hn::MaxLanes(kTag);
constexpr size_t kTileRows = 8;

/// One vector for each tap; kWidth 0: as many as the widest kernel has, of which in.width count.
template <size_t kWidth>
constexpr size_t kSlots = kWidth != 0 ? kWidth : kMaxConvWidth;

template <typename T>
HWY_INLINE Vector Input(const ConvRows<T>& in, size_t i, size_t e, size_t count) {
  const size_t before = in.width - 1;
  if (i < before) return LoadFirst(kTag, in.state + i * in.channels + e, count);
  return LoadFirst(kTag, in.x.data + (i - before) * in.x.stride + e, count);
}

HWY_INLINE Vector BiasOrZero(const float* bias, size_t e, size_t count) {
  return bias != nullptr ? LoadFirst(kTag, bias + e, count) : hn::Zero(kTag);
}

HWY_INLINE void LoadSlots(const float* from, size_t rows, size_t channels, size_t e, size_t count, Vector* slots) {
  for (size_t j = 0; j < rows; ++j) slots[j] = LoadFirst(kTag, from + j * channels + e, count);
}

HWY_INLINE void StoreSlots(const Vector* slots, size_t rows, size_t channels, size_t e, size_t count, float* to) {
  for (size_t j = 0; j < rows; ++j) StoreFirst(kTag, slots[j], to + j * channels + e, count);
}

template <typename T>
HWY_INLINE void LoadWindow(const ConvRows<T>& in, size_t t, size_t before, size_t e, size_t count, Vector* window) {
  for (size_t j = 0; j < before; ++j) window[j] = Input(in, t + j, e, count);
}

/// Asks for what the next tile needs of a row. Rows lie too far apart for the processor to foresee it.
template <typename T>
HWY_INLINE void Ask(RowsOf<T> rows, size_t t, size_t tokens, size_t e) {
  hwy::Prefetch(rows.data + HWY_MIN(t + kTileRows, tokens - 1) * rows.stride + e);
}

template <size_t kWidth, typename T>
void ForwardTile(const ConvRows<T>& in, RowsOf<T> y, size_t first, size_t last, size_t e, size_t count) {
  const size_t width = kWidth != 0 ? kWidth : in.width;
  Vector taps[kSlots<kWidth>], window[kSlots<kWidth>];
  LoadSlots(in.taps, width, in.channels, e, count, taps);
  LoadWindow(in, first, width - 1, e, count, window);
  const Vector bias = BiasOrZero(in.bias, e, count);
  for (size_t t = first; t < last; ++t) {
    window[width - 1] = LoadFirst(kTag, in.x.data + t * in.x.stride + e, count);
    Ask(in.x, t, in.tokens, e);
    Ask(y, t, in.tokens, e);
    Vector sum = bias;
    for (size_t j = 0; j < width; ++j) sum = hn::MulAdd(taps[j], window[j], sum);
    if (in.silu) sum = hn::Mul(sum, Sigmoid(kTag, sum));
    StoreFirst(kTag, sum, y.data + t * y.stride + e, count);
    for (size_t j = 0; j + 1 < width; ++j) window[j] = window[j + 1];
  }
}

template <size_t kWidth, typename T>
void ForwardRows(const ConvRows<T>& in, const ConvForward<T>& out, size_t first, size_t last) {
  for (size_t t = first; t < last; t += kTileRows) {
    for (size_t e = 0; e < in.channels; e += kLanes) {
      ForwardTile<kWidth>(in, out.y, t, HWY_MIN(last, t + kTileRows), e, HWY_MIN(kLanes, in.channels - e));
    }
  }
  for (size_t i = 0; i + 1 < in.width && last == in.tokens; ++i) {
    for (size_t e = 0; e < in.channels; e += kLanes) {
      const size_t count = HWY_MIN(kLanes, in.channels - e);
      StoreFirst(kTag, Input(in, last + i, e, count), out.state + i * in.channels + e, count);
    }
  }
}

/// What the backward pass over rows [first, last) does besides reading and writing rows.
struct ConvBlock {
  size_t first, last;
  float* carry;  // [W-1, E]: unfinished gradients of the inputs t .. t + W - 2 before row t
};

/// The gradient of input i is complete. Those of other blocks' rows are not: nothing is stored.
template <typename T>
HWY_INLINE void StoreInputGradient(const ConvBackward<T>& out, const ConvBlock& block, size_t before, size_t channels,
                                   size_t i, size_t e, size_t count, Vector gradient) {
  if (i < before) {
    if (block.first == 0) StoreFirst(kTag, gradient, out.dstate + i * channels + e, count);
    return;
  }
  const size_t row = i - before;
  if (row < block.first || row >= block.last) return;
  StoreFirst(kTag, gradient, out.dx.data + row * out.dx.stride + e, count);
}

/// d silu(a) / da.
HWY_INLINE Vector SiluSlope(Vector a) {
  const Vector one = hn::Set(kTag, 1.0f), s = Sigmoid(kTag, a);
  return hn::Mul(s, hn::MulAdd(a, hn::Sub(one, s), one));
}

/// Rows [first, last): of the block, or (then they add to no sums) behind it, whose inputs reach back into it.
template <size_t kWidth, typename T>
void BackwardTile(const ConvRows<T>& in, const ConvBackward<T>& out, const ConvBlock& block, size_t first, size_t last,
                  size_t e, size_t count) {
  const size_t width = kWidth != 0 ? kWidth : in.width, channels = in.channels;
  Vector taps[kSlots<kWidth>], window[kSlots<kWidth>], dinput[kSlots<kWidth>], dtaps[kSlots<kWidth>];
  LoadSlots(in.taps, width, channels, e, count, taps);
  LoadWindow(in, first, width - 1, e, count, window);
  LoadSlots(block.carry, width - 1, channels, e, count, dinput);
  LoadSlots(out.sums, width, channels, e, count, dtaps);
  float* dbias_place = out.sums + width * channels + e;
  Vector dbias = LoadFirst(kTag, dbias_place, count);
  const Vector bias = BiasOrZero(in.bias, e, count);
  for (size_t t = first; t < last; ++t) {
    window[width - 1] = LoadFirst(kTag, in.x.data + t * in.x.stride + e, count);
    Vector gradient = LoadFirst(kTag, out.dy.data + t * out.dy.stride + e, count);
    Ask(in.x, t, in.tokens, e);
    Ask(out.dy, t, in.tokens, e);
    Ask(out.dx, t, in.tokens, e);
    if (in.silu) {
      Vector a = bias;
      for (size_t j = 0; j < width; ++j) a = hn::MulAdd(taps[j], window[j], a);
      gradient = hn::Mul(gradient, SiluSlope(a));
    }
    dbias = hn::Add(dbias, gradient);
    dinput[width - 1] = hn::Zero(kTag);
    for (size_t j = 0; j < width; ++j) {
      dtaps[j] = hn::MulAdd(gradient, window[j], dtaps[j]);
      dinput[j] = hn::MulAdd(gradient, taps[j], dinput[j]);
    }
    StoreInputGradient(out, block, width - 1, channels, t, e, count, dinput[0]);
    for (size_t j = 0; j + 1 < width; ++j) {
      window[j] = window[j + 1];
      dinput[j] = dinput[j + 1];
    }
  }
  StoreSlots(dinput, width - 1, channels, e, count, block.carry);
  if (first >= block.last) return;
  StoreSlots(dtaps, width, channels, e, count, out.sums);
  StoreFirst(kTag, dbias, dbias_place, count);
}

template <size_t kWidth, typename T>
void BackwardRows(const ConvRows<T>& in, const ConvBackward<T>& out, size_t first, size_t last) {
  const size_t before = in.width - 1, channels = in.channels, seen = HWY_MIN(last + before, in.tokens);
  Scratch scratch(HWY_MAX(before * channels, size_t{1}));
  const ConvBlock block{first, last, scratch.take(before * channels)};
  std::fill_n(block.carry, before * channels, 0.0f);
  for (size_t t = first; t < seen;) {
    const size_t end = HWY_MIN(t < last ? last : seen, t + kTileRows);
    for (size_t e = 0; e < channels; e += kLanes) {
      BackwardTile<kWidth>(in, out, block, t, end, e, HWY_MIN(kLanes, channels - e));
    }
    t = end;
  }
  for (size_t i = 0; i < before && seen == in.tokens; ++i) {
    for (size_t e = 0; e < channels; e += kLanes) {
      const size_t count = HWY_MIN(kLanes, channels - e);
      const Vector gradient = hn::Add(LoadFirst(kTag, block.carry + i * channels + e, count),
                                      LoadFirst(kTag, out.dlast + i * channels + e, count));
      StoreInputGradient(out, block, before, channels, seen + i, e, count, gradient);
    }
  }
}

template <typename T>
void Forward(const ConvRows<T>& in, const ConvForward<T>& out, size_t first, size_t last) {
  switch (in.width) {
    case 2:
      return ForwardRows<2>(in, out, first, last);
    case 3:
      return ForwardRows<3>(in, out, first, last);
    case 4:
      return ForwardRows<4>(in, out, first, last);
    default:
      return ForwardRows<0>(in, out, first, last);
  }
}

template <typename T>
void Backward(const ConvRows<T>& in, const ConvBackward<T>& out, size_t first, size_t last) {
  switch (in.width) {
    case 2:
      return BackwardRows<2>(in, out, first, last);
    case 3:
      return BackwardRows<3>(in, out, first, last);
    case 4:
      return BackwardRows<4>(in, out, first, last);
    default:
      return BackwardRows<0>(in, out, first, last);
  }
}

void ForwardFloat(const ConvRows<float>& in, const ConvForward<float>& out, size_t first, size_t last) {
  Forward(in, out, first, last);
}
void ForwardBfloat16(const ConvRows<uint16_t>& in, const ConvForward<uint16_t>& out, size_t first, size_t last) {
  Forward(in, out, first, last);
}
void BackwardFloat(const ConvRows<float>& in, const ConvBackward<float>& out, size_t first, size_t last) {
  Backward(in, out, first, last);
}
void BackwardBfloat16(const ConvRows<uint16_t>& in, const ConvBackward<uint16_t>& out, size_t first, size_t last) {
  Backward(in, out, first, last);
}

}  // namespace seqloom::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace seqloom::ops::cpu {

HWY_EXPORT(ForwardFloat);
HWY_EXPORT(ForwardBfloat16);
HWY_EXPORT(BackwardFloat);
HWY_EXPORT(BackwardBfloat16);

void conv_forward_rows(const ConvRows<float>& in, const ConvForward<float>& out, size_t first, size_t last) {
  HWY_DYNAMIC_DISPATCH(ForwardFloat)(in, out, first, last);
}
void conv_forward_rows(const ConvRows<uint16_t>& in, const ConvForward<uint16_t>& out, size_t first, size_t last) {
  HWY_DYNAMIC_DISPATCH(ForwardBfloat16)(in, out, first, last);
}
void conv_backward_rows(const ConvRows<float>& in, const ConvBackward<float>& out, size_t first, size_t last) {
  HWY_DYNAMIC_DISPATCH(BackwardFloat)(in, out, first, last);
}
void conv_backward_rows(const ConvRows<uint16_t>& in, const ConvBackward<uint16_t>& out, size_t first, size_t last) {
  HWY_DYNAMIC_DISPATCH(BackwardBfloat16)(in, out, first, last);
}

}  // namespace seqloom::ops::cpu
#endif  // HWY_ONCE
