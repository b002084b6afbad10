#include "ops/cpu/affine_scan.h"

#include <algorithm>

#include "ops/cpu/balanced_for.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/affine_scan.cpp"
#include <hwy/foreach_target.h>
// clang-format off: must follow foreach_target
#include <hwy/highway.h>
#include "ops/cpu/vector_io-inl.h"
// clang-format on

#ifndef SEQLOOM_AFFINE_SCAN_ROWS
#define SEQLOOM_AFFINE_SCAN_ROWS
namespace seqloom::ops::cpu {

/// A range of channels of one sequence: rows lie `stride` floats (or bfloat16) apart, `count` of them are in the range;
/// a complex channel is two. `state` is the running state or gradient, in float32.
template <typename T>
struct AffineRows {
  const T *a, *b;
  T* h;
  float* state;
  size_t tokens, count, stride;
};

template <typename T>
struct AffineGradients {
  const T *a, *h, *dh;
  const float* first;  // the state before the first token
  T *da, *db;
  float* carry;  // the gradient of the last state, becomes that of the first
  size_t tokens, count, stride;
};

}  // namespace seqloom::ops::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace seqloom::ops::cpu::HWY_NAMESPACE {

// Channels in the lanes, a row of tokens at a time: the rows stream through once, the state stays in the first cache.

const hn::ScalableTag<float> kTag;
using Vector = hn::Vec<decltype(kTag)>;

template <typename T>
void AffineForward(const AffineRows<T>& in) {
  const size_t lanes = hn::Lanes(kTag);
  for (size_t t = 0; t < in.tokens; ++t) {
    const T *a = in.a + t * in.stride, *b = in.b + t * in.stride;
    T* h = in.h + t * in.stride;
    for (size_t i = 0; i < in.count; i += lanes) {
      const size_t rest = in.count - i;
      const Vector next =
          hn::MulAdd(LoadFirst(kTag, a + i, rest), LoadFirst(kTag, in.state + i, rest), LoadFirst(kTag, b + i, rest));
      StoreFirst(kTag, next, in.state + i, rest);
      StoreFirst(kTag, next, h + i, rest);
    }
  }
}

/// g_t = dh_t + a_{t+1} g_{t+1} from the last token to the first; da_t = g_t h_{t-1}, db_t = g_t.
template <typename T>
void AffineBackward(const AffineGradients<T>& in) {
  const size_t lanes = hn::Lanes(kTag);
  for (size_t t = in.tokens; t-- > 0;) {
    const size_t row = t * in.stride;
    for (size_t i = 0; i < in.count; i += lanes) {
      const size_t rest = in.count - i;
      const Vector g = hn::Add(LoadFirst(kTag, in.dh + row + i, rest), LoadFirst(kTag, in.carry + i, rest));
      const Vector before =
          t > 0 ? LoadFirst(kTag, in.h + row - in.stride + i, rest) : LoadFirst(kTag, in.first + i, rest);
      StoreFirst(kTag, g, in.db + row + i, rest);
      StoreFirst(kTag, hn::Mul(g, before), in.da + row + i, rest);
      StoreFirst(kTag, hn::Mul(g, LoadFirst(kTag, in.a + row + i, rest)), in.carry + i, rest);
    }
  }
}

/// Two vectors of complex numbers, real and imaginary parts apart.
struct Complex {
  Vector re, im;
};

HWY_INLINE Complex LoadComplex(const float* from, size_t count) {
  Complex z;
  if (HWY_LIKELY(count >= 2 * hn::Lanes(kTag))) {
    hn::LoadInterleaved2(kTag, from, z.re, z.im);
    return z;
  }
  HWY_ALIGN float buffer[2 * hn::MaxLanes(kTag)] = {};
  for (size_t i = 0; i < count; ++i) buffer[i] = from[i];
  hn::LoadInterleaved2(kTag, buffer, z.re, z.im);
  return z;
}

HWY_INLINE void StoreComplex(Complex z, float* to, size_t count) {
  if (HWY_LIKELY(count >= 2 * hn::Lanes(kTag))) {
    hn::StoreInterleaved2(z.re, z.im, kTag, to);
    return;
  }
  HWY_ALIGN float buffer[2 * hn::MaxLanes(kTag)];
  hn::StoreInterleaved2(z.re, z.im, kTag, buffer);
  for (size_t i = 0; i < count; ++i) to[i] = buffer[i];
}

/// a b, or with `conjugate` conj(a) b.
template <bool kConjugate>
HWY_INLINE Complex Product(Complex a, Complex b) {
  const Vector re = hn::Mul(a.re, b.re), im = hn::Mul(a.re, b.im);
  if constexpr (kConjugate) return {hn::MulAdd(a.im, b.im, re), hn::NegMulAdd(a.im, b.re, im)};
  return {hn::NegMulAdd(a.im, b.im, re), hn::MulAdd(a.im, b.re, im)};
}

HWY_INLINE Complex Sum(Complex a, Complex b) {
  return {hn::Add(a.re, b.re), hn::Add(a.im, b.im)};
}

void AffineForwardComplex(const AffineRows<float>& in) {
  const size_t step = 2 * hn::Lanes(kTag);
  for (size_t t = 0; t < in.tokens; ++t) {
    const size_t row = t * in.stride;
    for (size_t i = 0; i < in.count; i += step) {
      const size_t rest = in.count - i;
      const Complex kept = Product<false>(LoadComplex(in.a + row + i, rest), LoadComplex(in.state + i, rest));
      const Complex next = Sum(kept, LoadComplex(in.b + row + i, rest));
      StoreComplex(next, in.state + i, rest);
      StoreComplex(next, in.h + row + i, rest);
    }
  }
}

/// As AffineBackward, with conjugates: torch's gradient of a complex number is that of its parts.
void AffineBackwardComplex(const AffineGradients<float>& in) {
  const size_t step = 2 * hn::Lanes(kTag);
  for (size_t t = in.tokens; t-- > 0;) {
    const size_t row = t * in.stride;
    for (size_t i = 0; i < in.count; i += step) {
      const size_t rest = in.count - i;
      const Complex g = Sum(LoadComplex(in.dh + row + i, rest), LoadComplex(in.carry + i, rest));
      const Complex before = LoadComplex(t > 0 ? in.h + row - in.stride + i : in.first + i, rest);
      StoreComplex(g, in.db + row + i, rest);
      StoreComplex(Product<true>(before, g), in.da + row + i, rest);
      StoreComplex(Product<true>(LoadComplex(in.a + row + i, rest), g), in.carry + i, rest);
    }
  }
}

void AffineForwardFloat(const AffineRows<float>& in) {
  AffineForward(in);
}
void AffineForwardBfloat16(const AffineRows<uint16_t>& in) {
  AffineForward(in);
}
void AffineBackwardFloat(const AffineGradients<float>& in) {
  AffineBackward(in);
}
void AffineBackwardBfloat16(const AffineGradients<uint16_t>& in) {
  AffineBackward(in);
}

}  // namespace seqloom::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace seqloom::ops::cpu {

HWY_EXPORT(AffineForwardFloat);
HWY_EXPORT(AffineForwardBfloat16);
HWY_EXPORT(AffineForwardComplex);
HWY_EXPORT(AffineBackwardFloat);
HWY_EXPORT(AffineBackwardBfloat16);
HWY_EXPORT(AffineBackwardComplex);

namespace {

template <typename T>
T* data(const torch::Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}

/// Floats that one task takes of a row at least: whole cache lines, so that no two tasks write to the same one.
constexpr int64_t kRange = 64;

/// A range of the channels of one sequence: its first row and their number, its first float and their number.
struct Range {
  int64_t sequence, row, tokens, first, count;
};

/// Runs work(range) in parallel over ranges of the floats of every sequence, cut as far as the longest of them needs it
/// to keep all threads busy.
template <typename Work>
void for_ranges(const std::vector<int64_t>& offsets, int64_t width, Work work) {
  const auto sequences = static_cast<int64_t>(offsets.size()) - 1, threads = int64_t{at::get_num_threads()};
  int64_t longest = 0;
  for (int64_t s = 0; s < sequences; ++s) longest = std::max(longest, offsets[s + 1] - offsets[s]);
  const int64_t total = std::max<int64_t>(1, offsets.back());
  const int64_t wanted = (threads * longest + total - 1) / total;
  const int64_t parts = std::clamp<int64_t>(wanted, 1, (width + kRange - 1) / kRange);
  const int64_t share = (width + parts - 1) / parts, step = (share + kRange - 1) / kRange * kRange;
  std::vector<Range> ranges;
  std::vector<int64_t> costs;
  for (int64_t s = 0; s < sequences; ++s) {
    for (int64_t first = 0; first < width; first += step) {
      ranges.push_back({s, offsets[s], offsets[s + 1] - offsets[s], first, std::min(step, width - first)});
      costs.push_back(ranges.back().tokens + 1);
    }
  }
  balanced_for(TaskCosts(costs), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) work(ranges[i]);
  });
}

int64_t floats_of(const torch::Tensor& t) {
  return t.size(-1) * (t.is_complex() ? 2 : 1);
}

template <typename T>
void forward(const torch::Tensor& a, const torch::Tensor& b, const torch::Tensor& h, const torch::Tensor& state,
             const std::vector<int64_t>& offsets) {
  const int64_t width = floats_of(a);
  for_ranges(offsets, width, [&](const Range& range) {
    const int64_t at = range.row * width + range.first;
    const AffineRows<T> rows{data<const T>(a) + at,
                             data<const T>(b) + at,
                             data<T>(h) + at,
                             data<float>(state) + range.sequence * width + range.first,
                             static_cast<size_t>(range.tokens),
                             static_cast<size_t>(range.count),
                             static_cast<size_t>(width)};
    if constexpr (std::is_same_v<T, float>) {
      if (a.is_complex()) {
        HWY_DYNAMIC_DISPATCH(AffineForwardComplex)(rows);
      } else {
        HWY_DYNAMIC_DISPATCH(AffineForwardFloat)(rows);
      }
    } else {
      HWY_DYNAMIC_DISPATCH(AffineForwardBfloat16)(rows);
    }
  });
}

struct Gradients {
  torch::Tensor a, b, state;
};

template <typename T>
void backward(const torch::Tensor& a, const torch::Tensor& h, const torch::Tensor& state, const torch::Tensor& dh,
              const Gradients& g, const std::vector<int64_t>& offsets) {
  const int64_t width = floats_of(a);
  for_ranges(offsets, width, [&](const Range& range) {
    const int64_t at = range.row * width + range.first, at_state = range.sequence * width + range.first;
    const AffineGradients<T> rows{data<const T>(a) + at,
                                  data<const T>(h) + at,
                                  data<const T>(dh) + at,
                                  data<const float>(state) + at_state,
                                  data<T>(g.a) + at,
                                  data<T>(g.b) + at,
                                  data<float>(g.state) + at_state,
                                  static_cast<size_t>(range.tokens),
                                  static_cast<size_t>(range.count),
                                  static_cast<size_t>(width)};
    if constexpr (std::is_same_v<T, float>) {
      if (a.is_complex()) {
        HWY_DYNAMIC_DISPATCH(AffineBackwardComplex)(rows);
      } else {
        HWY_DYNAMIC_DISPATCH(AffineBackwardFloat)(rows);
      }
    } else {
      HWY_DYNAMIC_DISPATCH(AffineBackwardBfloat16)(rows);
    }
  });
}

}  // namespace

std::pair<torch::Tensor, torch::Tensor> affine_scan_forward(const torch::Tensor& a, const torch::Tensor& b,
                                                            const torch::Tensor& state,
                                                            const std::vector<int64_t>& offsets) {
  const torch::Tensor h = torch::empty_like(b), last = state.clone();
  (b.scalar_type() == torch::kBFloat16 ? forward<uint16_t> : forward<float>)(a, b, h, last, offsets);
  return {h, last};
}

std::tuple<torch::Tensor, torch::Tensor, torch::Tensor> affine_scan_backward(
    const torch::Tensor& a, const torch::Tensor& h, const torch::Tensor& state, const torch::Tensor& dh,
    const torch::Tensor& dlast, const std::vector<int64_t>& offsets) {
  const Gradients g{torch::empty_like(a), torch::empty_like(a), dlast.clone()};
  (a.scalar_type() == torch::kBFloat16 ? backward<uint16_t> : backward<float>)(a, h, state, dh, g, offsets);
  return {g.a, g.b, g.state};
}

}  // namespace seqloom::ops::cpu
#endif  // HWY_ONCE
