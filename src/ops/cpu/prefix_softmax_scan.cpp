#include "ops/cpu/prefix_softmax_scan.h"

#include "ops/cpu/heads.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/prefix_softmax_scan.cpp"
#include <hwy/foreach_target.h>
// clang-format off: must follow foreach_target
#include <hwy/aligned_allocator.h>
#include <hwy/highway.h>
#include "ops/cpu/vector_io-inl.h"
// clang-format on

#ifndef SEQLOOM_PREFIX_SOFTMAX_ROWS
#define SEQLOOM_PREFIX_SOFTMAX_ROWS
namespace seqloom::ops::cpu {

/// One head of one sequence; rows of v, y (and dv) and dy lie *_stride apart. m is the maximum before its first token;
/// u, w are the running sums, replaced by the last ones; in the backward pass their gradients, from those behind the
/// last token to those before the first.
template <typename T>
struct SoftmaxRows {
  const float* s;
  const T *v, *dy;
  T *y, *dv;
  int64_t v_stride, y_stride, dy_stride;
  float *sums, *ds, *m, *u, *w;
  size_t tokens, width;
};

}  // namespace seqloom::ops::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace seqloom::ops::cpu::HWY_NAMESPACE {

const hn::ScalableTag<float> kTag;
using Vector = hn::Vec<decltype(kTag)>;

/// Fills keep_t = e^{m_{t-1} - m_t} and add_t = e^{s_t - m_t} for the running maxima m_t from `m` on; returns the last
/// maximum. A maximum of -inf, that of no tokens, counts as 0, so that both are 0. Both arrays have room for a vector
/// more.
float PrefixWeights(const float* s, float m, size_t tokens, float* keep, float* add) {
  for (size_t t = 0; t < tokens; ++t) {
    const float next = std::max(m, s[t]), reference = std::isinf(next) ? 0 : next;
    keep[t] = m - reference;
    add[t] = s[t] - reference;
    m = next;
  }
  for (size_t t = 0; t < tokens; t += hn::Lanes(kTag)) {
    hn::Store(Exp(kTag, hn::Load(kTag, keep + t)), kTag, keep + t);
    hn::Store(Exp(kTag, hn::Load(kTag, add + t)), kTag, add + t);
  }
  return m;
}

/// Room for `count` arrays of `size` floats, each with a vector to spare.
struct Arrays {
  Arrays(size_t count, size_t size)
      : stride(hwy::RoundUpTo(size + hn::MaxLanes(kTag), 64)), memory(hwy::AllocateAligned<float>(count * stride)) {
    std::fill_n(memory.get(), count * stride, 0.0f);
  }
  float* operator[](size_t i) const { return memory.get() + i * stride; }

  size_t stride;
  hwy::AlignedFreeUniquePtr<float[]> memory;
};

template <typename T>
void SoftmaxForward(const SoftmaxRows<T>& in) {
  const size_t lanes = hn::Lanes(kTag), width = in.width;
  const Arrays weights(2, in.tokens), state(1, width);
  const float *keep = weights[0], *add = weights[1];
  float *w = state[0], u = *in.u;
  *in.m = PrefixWeights(in.s, *in.m, in.tokens, weights[0], weights[1]);
  std::copy_n(in.w, width, w);
  const T* v = in.v;
  T* y = in.y;
  for (size_t t = 0; t < in.tokens; ++t, v += in.v_stride, y += in.y_stride) {
    u = u * keep[t] + add[t];
    in.sums[t] = u;
    const Vector kept = hn::Set(kTag, keep[t]), added = hn::Set(kTag, add[t]);
    const Vector inverse = hn::Set(kTag, u > 0 ? 1 / u : 0);
    for (size_t i = 0; i < width; i += lanes) {
      const Vector own = hn::Mul(added, LoadFirst(kTag, v + i, width - i));
      const Vector next = hn::MulAdd(kept, hn::Load(kTag, w + i), own);
      hn::Store(next, kTag, w + i);
      StoreFirst(kTag, hn::Mul(next, inverse), y + i, width - i);
    }
  }
  *in.u = u;
  std::copy_n(w, width, in.w);
}

/// With gw, gu the gradients of the running sums: gw_t = dy_t / u_t + keep_{t+1} gw_{t+1}, gu_t = -dy_t . y_t / u_t +
/// keep_{t+1} gu_{t+1}; dv_t = add_t gw_t, ds_t = add_t (gu_t + gw_t . v_t).
template <typename T>
void SoftmaxBackward(const SoftmaxRows<T>& in) {
  const size_t lanes = hn::Lanes(kTag), width = in.width;
  const Arrays weights(2, in.tokens), state(1, width);
  const float *keep = weights[0], *add = weights[1];
  float *gw = state[0], gu = *in.u;
  PrefixWeights(in.s, *in.m, in.tokens, weights[0], weights[1]);
  std::copy_n(in.w, width, gw);
  for (size_t t = in.tokens; t-- > 0;) {
    const auto row = static_cast<int64_t>(t);
    const T *v = in.v + row * in.v_stride, *y = in.y + row * in.y_stride, *dy = in.dy + row * in.dy_stride;
    T* dv = in.dv + row * in.y_stride;
    const float inverse = in.sums[t] > 0 ? 1 / in.sums[t] : 0;
    const Vector scale = hn::Set(kTag, inverse);
    Vector through_y = hn::Zero(kTag), through_v = hn::Zero(kTag);
    for (size_t i = 0; i < width; i += lanes) {
      const Vector gradient = LoadFirst(kTag, dy + i, width - i);
      const Vector g = hn::MulAdd(gradient, scale, hn::Load(kTag, gw + i));
      through_y = hn::MulAdd(gradient, LoadFirst(kTag, y + i, width - i), through_y);
      through_v = hn::MulAdd(g, LoadFirst(kTag, v + i, width - i), through_v);
      StoreFirst(kTag, hn::Mul(g, hn::Set(kTag, add[t])), dv + i, width - i);
      hn::Store(hn::Mul(g, hn::Set(kTag, keep[t])), kTag, gw + i);
    }
    gu -= inverse * hn::GetLane(hn::SumOfLanes(kTag, through_y));
    in.ds[t] = add[t] * (gu + hn::GetLane(hn::SumOfLanes(kTag, through_v)));
    gu *= keep[t];
  }
  *in.u = gu;
  std::copy_n(gw, width, in.w);
}

void SoftmaxForwardFloat(const SoftmaxRows<float>& in) {
  SoftmaxForward(in);
}
void SoftmaxForwardBfloat16(const SoftmaxRows<uint16_t>& in) {
  SoftmaxForward(in);
}
void SoftmaxBackwardFloat(const SoftmaxRows<float>& in) {
  SoftmaxBackward(in);
}
void SoftmaxBackwardBfloat16(const SoftmaxRows<uint16_t>& in) {
  SoftmaxBackward(in);
}

}  // namespace seqloom::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace seqloom::ops::cpu {

HWY_EXPORT(SoftmaxForwardFloat);
HWY_EXPORT(SoftmaxForwardBfloat16);
HWY_EXPORT(SoftmaxBackwardFloat);
HWY_EXPORT(SoftmaxBackwardBfloat16);

namespace {

void run(const SoftmaxRows<float>& rows, bool backward) {
  backward ? HWY_DYNAMIC_DISPATCH(SoftmaxBackwardFloat)(rows) : HWY_DYNAMIC_DISPATCH(SoftmaxForwardFloat)(rows);
}
void run(const SoftmaxRows<uint16_t>& rows, bool backward) {
  backward ? HWY_DYNAMIC_DISPATCH(SoftmaxBackwardBfloat16)(rows) : HWY_DYNAMIC_DISPATCH(SoftmaxForwardBfloat16)(rows);
}

template <typename T>
T* data(const torch::Tensor& t) {
  return t.defined() ? static_cast<T*>(t.data_ptr()) : nullptr;
}

/// All heads of all sequences in parallel. `sums` of the forward pass, its m, and u, w or their gradients.
template <typename T>
void run_heads(const torch::Tensor& s, const torch::Tensor& v, const SoftmaxScan& scan, const torch::Tensor& dy,
               const torch::Tensor& ds, const torch::Tensor& dv, const std::vector<int64_t>& offsets) {
  const int64_t heads = s.size(1), width = v.size(3);
  const auto sequences = sequences_of(s.transpose(1, 2), offsets, /*chunk=*/1);
  std::vector<int64_t> costs;
  for (const Sequence& sequence : sequences) costs.insert(costs.end(), heads, sequence.tokens + 1);
  balanced_for(TaskCosts(costs), [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const Sequence& sequence = sequences[task / heads];
      const auto place = [&](const torch::Tensor& t) {
        return data<T>(t) + sequence.row * t.stride(0) + task % heads * t.stride(1) + sequence.first * t.stride(2);
      };
      const int64_t numbers = (sequence.row * heads + task % heads) * s.size(2) + sequence.first;
      SoftmaxRows<T> rows{};
      rows.s = data<const float>(s) + numbers;
      rows.v = place(v);
      rows.v_stride = v.stride(2);
      rows.y = place(scan.y);
      rows.y_stride = scan.y.stride(2);
      if (dy.defined()) {
        rows.dy = place(dy);
        rows.dy_stride = dy.stride(2);
        rows.dv = place(dv);
        rows.ds = data<float>(ds) + numbers;
      }
      rows.sums = data<float>(scan.sums) + numbers;
      rows.m = data<float>(scan.m) + task;
      rows.u = data<float>(scan.u) + task;
      rows.w = data<float>(scan.w) + task * width;
      rows.tokens = static_cast<size_t>(sequence.tokens);
      rows.width = static_cast<size_t>(width);
      run(rows, dy.defined());
    }
  });
}

}  // namespace

SoftmaxScan prefix_softmax_forward(const torch::Tensor& s, const torch::Tensor& v, const torch::Tensor& m,
                                   const torch::Tensor& u, const torch::Tensor& w,
                                   const std::vector<int64_t>& offsets) {
  const SoftmaxScan scan{torch::empty_like(v), torch::empty_like(s), m.clone(), u.clone(), w.clone()};
  const bool narrow = v.scalar_type() == torch::kBFloat16;
  (narrow ? run_heads<uint16_t> : run_heads<float>)(s, v, scan, {}, {}, {}, offsets);
  return scan;
}

SoftmaxScanGradients prefix_softmax_backward(const torch::Tensor& s, const torch::Tensor& v, const torch::Tensor& m,
                                             const SoftmaxScan& scan, const torch::Tensor& dy, const torch::Tensor& du,
                                             const torch::Tensor& dw, const std::vector<int64_t>& offsets) {
  // dv lies as y does: one walk serves both
  const SoftmaxScanGradients g{torch::empty_like(s), torch::empty_like(scan.y), du.clone(), dw.clone()};
  const SoftmaxScan carried{scan.y, scan.sums, m, g.u, g.w};
  const bool narrow = v.scalar_type() == torch::kBFloat16;
  (narrow ? run_heads<uint16_t> : run_heads<float>)(s, v, carried, dy, g.s, g.v, offsets);
  return g;
}

}  // namespace seqloom::ops::cpu
#endif  // HWY_ONCE
