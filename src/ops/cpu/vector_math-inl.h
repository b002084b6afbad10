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

#if HWY_TARGET <= HWY_AVX3
// 2^(i/32)
alignas(64) constexpr float kExp2Table[32] = {
    1.0f,        1.0218972f,  1.04427373f, 1.06714046f, 1.09050775f, 1.1143868f,  1.13878858f, 1.1637249f,
    1.18920708f, 1.21524739f, 1.24185777f, 1.26905096f, 1.29683959f, 1.32523668f, 1.35425556f, 1.38390994f,
    1.41421354f, 1.44518077f, 1.47682619f, 1.50916445f, 1.54221082f, 1.5759809f,  1.61049032f, 1.64575553f,
    1.68179286f, 1.71861935f, 1.75625217f, 1.79470909f, 1.8340081f,  1.87416768f, 1.91520655f, 1.95714414f};

/// The table's entry at the last five bits of each lane. Highway has no look-up in two registers yet.
HWY_INLINE hn::Vec512<float> LookUpExp2(hn::Vec512<float> index) {
  return {_mm512_permutex2var_ps(_mm512_load_ps(kExp2Table), _mm512_castps_si512(index.raw),
                                 _mm512_load_ps(kExp2Table + 16))};
}

/// A power of two that comes out as 0.
constexpr float kExp2Zero = -160.0f;

/// 2^(a b) within 2 ulp for |a b| <= 126 and 0 for kExp2Zero, for whole vectors. a b = n / 32 + r with |r| <= 1/64;
/// adding 1.5 * 2^18 leaves n in the low bits. Its last five choose 2^(n mod 32 / 32) from two registers and the whole
/// of n / 32 scales it; 2^r - 1 is a polynomial (minimax in relative error, 5.3e-08).
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Exp2Product(D d, V a, V b) {
  const V magic = hn::Set(d, 393216.0f);
  const V shifted = hn::MulAdd(a, b, magic);
  const V nearest = hn::Sub(shifted, magic);
  const V r = hn::MulSub(a, b, nearest);
  const V root = LookUpExp2(shifted);
  const V p = hn::Mul(r, hn::MulAdd(r, hn::Set(d, 0.2402267605f), hn::Set(d, 0.6931573153f)));
  return {_mm512_scalef_ps(hn::MulAdd(root, p, root).raw, nearest.raw)};
}
#else
/// A power of two that comes out as 0: r is 0 there, and the exponent's bits become those of 0.
constexpr float kExp2Zero = -127.0f;

/// 2^(a b) within 4 ulp for |a b| <= 126 and 0 for kExp2Zero. a b = n + r with |r| <= 1/2; 2^r is a polynomial that is
/// exactly 1 at 0 (minimax in relative error, found by reweighted least squares: 9.1e-08), and n goes straight into the
/// exponent: adding 1.5 * 2^23 leaves the rounded integer in the low bits.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Exp2Product(D d, V a, V b) {
  const hn::Rebind<int32_t, D> di;
  const V magic = hn::Set(d, 12582912.0f);
  const V shifted = hn::MulAdd(a, b, magic);
  const V r = hn::MulSub(a, b, hn::Sub(shifted, magic));
  V p = hn::MulAdd(r, hn::Set(d, 0.00132647271f), hn::Set(d, 0.009671512654f));
  p = hn::MulAdd(r, p, hn::Set(d, 0.05550733744f));
  p = hn::MulAdd(r, p, hn::Set(d, 0.2402224209f));
  p = hn::MulAdd(r, p, hn::Set(d, 0.6931469776f));
  p = hn::MulAdd(r, p, hn::Set(d, 1.0f));
  return hn::BitCast(d, hn::Add(hn::BitCast(di, p), hn::ShiftLeft<23>(hn::BitCast(di, shifted))));
}
#endif

template <class D, class V = hn::Vec<D>>
HWY_INLINE V Exp2Bounded(D d, V x) {
  return Exp2Product(d, x, hn::Set(d, 1.0f));
}

/// The same for any x. A NaN is kept as it is; min and max would swallow it on some targets.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Exp2(D d, V x) {
  const V largest = hn::Set(d, 127.99999f);
  const V bounded = Exp2Bounded(d, hn::Min(hn::Max(x, hn::Set(d, kExp2Zero)), largest));
  return hn::IfThenElse(hn::Le(x, largest), bounded, hn::Mul(x, hn::Inf(d)));
}

constexpr float kLog2E = 1.44269504088896341f;

/// e^-x for x >= 0, and anything for NaN.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ExpOfMinus(D d, V x) {
  return Exp2Bounded(d, hn::Max(hn::Mul(x, hn::Set(d, -kLog2E)), hn::Set(d, kExp2Zero)));
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE V Exp(D d, V x) {
  return Exp2(d, hn::Mul(x, hn::Set(d, kLog2E)));
}

/// 1 / x within 2 ulp for x in [1, 2^126], and NaN for NaN. A division of whole AVX-512 vectors takes as long as 30
/// multiply-adds; an estimate of 14 bits needs one Newton step.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ReciprocalOf1To2p126(D d, V x) {
#if HWY_TARGET <= HWY_AVX3
  const V estimate = hn::ApproximateReciprocal(x);
  return hn::MulAdd(estimate, hn::NegMulAdd(x, estimate, hn::Set(d, 1.0f)), estimate);
#else
  return hn::Div(hn::Set(d, 1.0f), x);
#endif
}

/// 1 / (1 + e) for e >= 0, infinity included.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V InverseOfOneAnd(D d, V e) {
  const V most = hn::Set(d, 8.5e37f);  // 2^126
  const V sum = hn::Add(hn::Set(d, 1.0f), e);
  return ReciprocalOf1To2p126(d, hn::IfThenElse(hn::Gt(sum, most), most, sum));
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE V Sigmoid(D d, V x) {
  return InverseOfOneAnd(d, Exp(d, hn::Neg(x)));
}

/// log(1 + e^x) from y = e^{-|x|}, with full relative precision for very negative x; x itself above 20, as torch does.
/// log(1 + y) = 2 atanh(s), s = y / (2 + y) <= 1/3; atanh(s) / s is a polynomial in s^2 (minimax, 5e-09).
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Softplus(D d, V x, V y) {
  const V s = hn::Mul(y, ReciprocalOf1To2p126(d, hn::Add(y, hn::Set(d, 2.0f))));
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
