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

/// 2^x within 4 ulp for |x| <= 126. x = n + r with |r| <= 1/2; 2^r is a polynomial that is exactly 1 at 0
/// (minimax in relative error, found by reweighted least squares: 9.1e-08), and n goes straight into the exponent:
/// adding 1.5 * 2^23 leaves the rounded integer in the low bits.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Exp2Bounded(D d, V x) {
  const hn::Rebind<int32_t, D> di;
  const V magic = hn::Set(d, 12582912.0f);
  const V shifted = hn::Add(x, magic);
  const V r = hn::Sub(x, hn::Sub(shifted, magic));
  V p = hn::MulAdd(r, hn::Set(d, 0.00132647271f), hn::Set(d, 0.009671512654f));
  p = hn::MulAdd(r, p, hn::Set(d, 0.05550733744f));
  p = hn::MulAdd(r, p, hn::Set(d, 0.2402224209f));
  p = hn::MulAdd(r, p, hn::Set(d, 0.6931469776f));
  p = hn::MulAdd(r, p, hn::Set(d, 1.0f));
  return hn::BitCast(d, hn::Add(hn::BitCast(di, p), hn::ShiftLeft<23>(hn::BitCast(di, shifted))));
}

/// The same for any x: at the ends of the clamp r = 0, and the exponent's bits become those of 0 and of infinity. A NaN
/// is kept as it is; min and max would swallow it on some targets.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Exp2(D d, V x) {
  const V clamped = hn::Min(hn::Max(x, hn::Set(d, -127.0f)), hn::Set(d, 128.0f));
  return hn::IfThenElse(hn::Eq(x, x), Exp2Bounded(d, clamped), x);
}

constexpr float kLog2E = 1.44269504088896341f;

template <class D, class V = hn::Vec<D>>
HWY_INLINE V Exp(D d, V x) {
  return Exp2(d, hn::Mul(x, hn::Set(d, kLog2E)));
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE V Sigmoid(D d, V x) {
  const V one = hn::Set(d, 1.0f);
  return hn::Div(one, hn::Add(one, Exp(d, hn::Neg(x))));
}

/// log(1 + e^x) from y = e^{-|x|}, with full relative precision for very negative x; x itself above 20, as torch does.
/// log(1 + y) = 2 atanh(s), s = y / (2 + y) <= 1/3; atanh(s) / s is a polynomial in s^2 (minimax, 5e-09).
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Softplus(D d, V x, V y) {
  const V s = hn::Div(y, hn::Add(y, hn::Set(d, 2.0f)));
  const V q = hn::Mul(s, s);
  V p = hn::MulAdd(q, hn::Set(d, 0.1400389075f), hn::Set(d, 0.1400129050f));
  p = hn::MulAdd(p, q, hn::Set(d, 0.2001074255f));
  p = hn::MulAdd(p, q, hn::Set(d, 0.3333320916f));
  p = hn::MulAdd(p, q, hn::Set(d, 1.0f));
  const V soft = hn::MulAdd(hn::Add(s, s), p, hn::Max(x, hn::Zero(d)));
  return hn::IfThenElse(hn::Le(x, hn::Set(d, 20.0f)), soft, x);  // a NaN is x itself
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
