#include "ops/cpu/gated_linear_attention_step.h"

#include <ATen/Parallel.h>

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/gated_linear_attention_step.cpp"
#include <hwy/foreach_target.h>
// clang-format off: must follow foreach_target
#include <hwy/highway.h>
#include "ops/cpu/vector_math-inl.h"
// clang-format on

#ifndef SEQLOOM_LINEAR_ATTENTION_STEP
#define SEQLOOM_LINEAR_ATTENTION_STEP
namespace seqloom::ops::cpu {

/// One head of one row.
struct LinearHeadStep {
  const float *q, *k, *v;  // [K], [K], [V]
  const float* log_decay;  // one, or one a key channel `decay_stride` = 1 apart; null: none
  size_t decay_stride;
  float *state, *o;  // [K, V], [V]
  size_t keys, values;
  float scale;
};

}  // namespace seqloom::ops::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace seqloom::ops::cpu::HWY_NAMESPACE {

const hn::ScalableTag<float> kTag;
using Vector = hn::Vec<decltype(kTag)>;

/// Value channels in the lanes, a loop over the key channels: the state is read and written once.
void LinearStepHead(const LinearHeadStep& in) {
  for (size_t c = 0; c < in.values; c += hn::Lanes(kTag)) {
    const size_t count = in.values - c;
    const Vector v = LoadFirst(kTag, in.v + c, count);
    Vector o = hn::Zero(kTag), kept = hn::Set(kTag, 1.0f);
    if (in.log_decay != nullptr) kept = Exp(kTag, hn::Set(kTag, in.log_decay[0]));
    for (size_t n = 0; n < in.keys; ++n) {
      float* at = in.state + n * in.values + c;
      Vector state = LoadFirst(kTag, at, count);
      if (in.decay_stride > 0) kept = Exp(kTag, hn::Set(kTag, in.log_decay[n]));
      if (in.log_decay != nullptr) state = hn::Mul(state, kept);
      state = hn::MulAdd(hn::Set(kTag, in.k[n]), v, state);
      StoreFirst(kTag, state, at, count);
      o = hn::MulAdd(hn::Set(kTag, in.q[n]), state, o);
    }
    StoreFirst(kTag, hn::Mul(o, hn::Set(kTag, in.scale)), in.o + c, count);
  }
}

}  // namespace seqloom::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace seqloom::ops::cpu {

HWY_EXPORT(LinearStepHead);

void gated_linear_attention_step(const LinearAttentionStepInputs& in, torch::Tensor& o) {
  const int64_t rows = o.size(0), heads = o.size(1), values = o.size(2), keys = in.q.size(2);
  const int64_t share = heads / in.q.size(1);
  const bool each_key = in.log_decay.defined() && in.log_decay.dim() == 3;
  const auto row = [](const torch::Tensor& t, int64_t r) { return t.const_data_ptr<float>() + r * t.stride(0); };
  constexpr int64_t kWork = 1 << 14;  // state entries that pay to give to another thread
  const int64_t cost = std::max<int64_t>(1, rows * keys * values);
  at::parallel_for(0, heads, std::max<int64_t>(1, kWork / cost), [&](int64_t begin, int64_t end) {
    for (int64_t h = begin; h < end; ++h) {
      for (int64_t r = 0; r < rows; ++r) {  // in order: neighbours may have one state
        const float* log_decay = in.log_decay.defined()
                                     ? in.log_decay.const_data_ptr<float>() + (r * heads + h) * (each_key ? keys : 1)
                                     : nullptr;
        HWY_DYNAMIC_DISPATCH(LinearStepHead)
        ({row(in.q, r) + h / share * keys, row(in.k, r) + h / share * keys, row(in.v, r) + h * values, log_decay,
          static_cast<size_t>(each_key), in.states[r] + h * keys * values,
          o.mutable_data_ptr<float>() + (r * heads + h) * values, static_cast<size_t>(keys),
          static_cast<size_t>(values), static_cast<float>(in.scale)});
      }
    }
  });
}

}  // namespace seqloom::ops::cpu
#endif  // HWY_ONCE
