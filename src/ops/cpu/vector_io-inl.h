// Loads and stores of bfloat16 as float lanes, beside those of float (vector_math-inl.h). Compiled once for each SIMD
// target (Highway's foreach_target).
#if defined(SEQLOOM_VECTOR_IO_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef SEQLOOM_VECTOR_IO_INL
#undef SEQLOOM_VECTOR_IO_INL
#else
#define SEQLOOM_VECTOR_IO_INL
#endif

#include <hwy/highway.h>

#include "ops/cpu/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace seqloom::ops::cpu::HWY_NAMESPACE {

/// The bits of a bfloat16: the upper half of a float's.
using Bfloat16 = uint16_t;

template <class D, class V = hn::Vec<D>>
HWY_INLINE V LoadFirst(D d, const Bfloat16* from, size_t count) {
  const hn::Rebind<uint16_t, D> d16;
  const hn::Rebind<uint32_t, D> d32;
  HWY_ALIGN uint16_t buffer[hn::MaxLanes(d)] = {};
  const bool whole = HWY_LIKELY(count >= hn::Lanes(d));
  if (!whole) {
    for (size_t i = 0; i < count; ++i) buffer[i] = from[i];
  }
  const auto bits = whole ? hn::LoadU(d16, from) : hn::Load(d16, buffer);
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(d32, bits)));
}

/// Rounded to the nearest, ties to even, as torch does; a NaN stays one.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void StoreFirst(D d, V v, Bfloat16* to, size_t count) {
  const hn::Rebind<uint16_t, D> d16;
  const hn::Rebind<uint32_t, D> d32;
  const hn::Rebind<int32_t, D> di32;
  const auto bits = hn::BitCast(d32, v);
  const auto upper = hn::ShiftRight<16>(bits);
  const auto half = hn::Add(hn::And(upper, hn::Set(d32, 1)), hn::Set(d32, 0x7FFF));
  const auto rounded = hn::ShiftRight<16>(hn::Add(bits, half));
  const auto quiet = hn::Or(upper, hn::Set(d32, 0x40));
  const auto kept = hn::IfThenElse(hn::RebindMask(d32, hn::Eq(v, v)), rounded, quiet);
  const auto narrow = hn::DemoteTo(d16, hn::BitCast(di32, kept));
  if (HWY_LIKELY(count >= hn::Lanes(d))) {
    hn::StoreU(narrow, d16, to);
    return;
  }
  HWY_ALIGN uint16_t buffer[hn::MaxLanes(d)];
  hn::Store(narrow, d16, buffer);
  for (size_t i = 0; i < count; ++i) to[i] = buffer[i];
}

}  // namespace seqloom::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
