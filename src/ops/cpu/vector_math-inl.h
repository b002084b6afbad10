// Vector functions for the fused kernels, compiled once for each SIMD target (Highway's foreach_target).
#if defined(SEQLOOM_VECTOR_MATH_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef SEQLOOM_VECTOR_MATH_INL
#undef SEQLOOM_VECTOR_MATH_INL
#else
#define SEQLOOM_VECTOR_MATH_INL
#endif

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace seqloom::ops::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

/// e^x within 2 ulp for x <= 88; exactly 0 below -87.3, where float32 has no normal numbers. x = n ln 2 + r, and a
/// polynomial for e^r on |r| <= ln 2 / 2 (coefficients: Cephes, Moshier 1989).
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Exp(D d, V x) {
  const hn::Rebind<int32_t, D> di;
  const V low = hn::Set(d, -87.3f);
  const V clamped = hn::Min(hn::Max(x, low), hn::Set(d, 88.3f));
  const auto n = hn::NearestInt(hn::Mul(clamped, hn::Set(d, 1.44269504088896341f)));
  const V nf = hn::ConvertTo(d, n);
  V r = hn::NegMulAdd(nf, hn::Set(d, 0.693359375f), clamped);
  r = hn::NegMulAdd(nf, hn::Set(d, -2.12194440e-4f), r);
  V p = hn::MulAdd(r, hn::Set(d, 1.9875691500e-4f), hn::Set(d, 1.3981999507e-3f));
  p = hn::MulAdd(r, p, hn::Set(d, 8.3334519073e-3f));
  p = hn::MulAdd(r, p, hn::Set(d, 4.1665795894e-2f));
  p = hn::MulAdd(r, p, hn::Set(d, 1.6666665459e-1f));
  p = hn::MulAdd(r, p, hn::Set(d, 0.5f));
  p = hn::Add(hn::MulAdd(hn::Mul(r, r), p, r), hn::Set(d, 1.0f));
  const V scale = hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(n, hn::Set(di, 127))));
  // not (x < low), so that NaN stays NaN
  return hn::IfThenZeroElse(hn::Lt(x, low), hn::Mul(p, scale));
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE V Sigmoid(D d, V x) {
  const V one = hn::Set(d, 1.0f);
  return hn::Div(one, hn::Add(one, Exp(d, hn::Neg(x))));
}

/// log(1 + e^x) with full relative precision for very negative x; x itself above 20, as torch does.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Softplus(D d, V x) {
  const V y = Exp(d, hn::Neg(hn::Abs(x)));  // in (0, 1]
  // log1p(y) = 2 atanh(s), s = y / (2 + y) <= 1/3
  const V s = hn::Div(y, hn::Add(y, hn::Set(d, 2.0f)));
  const V q = hn::Mul(s, s);
  V p = hn::Set(d, 1.0f / 15);
  p = hn::MulAdd(p, q, hn::Set(d, 1.0f / 13));
  p = hn::MulAdd(p, q, hn::Set(d, 1.0f / 11));
  p = hn::MulAdd(p, q, hn::Set(d, 1.0f / 9));
  p = hn::MulAdd(p, q, hn::Set(d, 1.0f / 7));
  p = hn::MulAdd(p, q, hn::Set(d, 1.0f / 5));
  p = hn::MulAdd(p, q, hn::Set(d, 1.0f / 3));
  p = hn::MulAdd(p, q, hn::Set(d, 1.0f));
  const V soft = hn::MulAdd(hn::Add(s, s), p, hn::Max(x, hn::Zero(d)));
  return hn::IfThenElse(hn::Gt(x, hn::Set(d, 20.0f)), x, soft);
}

/// The first `count` of a vector's lanes from memory, the rest 0. A partial vector goes through a buffer: masked loads
/// may touch what lies beyond on targets without them.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V LoadFirst(D d, const float* from, size_t count) {
  if (HWY_LIKELY(count >= hn::Lanes(d))) return hn::LoadU(d, from);
  HWY_ALIGN float buffer[hn::MaxLanes(d)] = {};
  for (size_t i = 0; i < count; ++i) buffer[i] = from[i];
  return hn::Load(d, buffer);
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE void StoreFirst(D d, V v, float* to, size_t count) {
  if (HWY_LIKELY(count >= hn::Lanes(d))) {
    hn::StoreU(v, d, to);
    return;
  }
  HWY_ALIGN float buffer[hn::MaxLanes(d)];
  hn::Store(v, d, buffer);
  for (size_t i = 0; i < count; ++i) to[i] = buffer[i];
}

}  // namespace seqloom::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
