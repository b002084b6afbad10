#include "ops/cpu/selective_state_update.h"

#include <ATen/Parallel.h>

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/selective_state_update.cpp"
#include <hwy/foreach_target.h>
// clang-format off: must follow foreach_target
#include <hwy/highway.h>
#include "ops/cpu/vector_math-inl.h"
// clang-format on

#ifndef SEQLOOM_STATE_UPDATE
#define SEQLOOM_STATE_UPDATE
namespace seqloom::ops::cpu {

/// Channels of one row and head; null: absent.
struct UpdateRows {
  const float *x, *dt, *z, *D, *bias;  // [channels]
  const float* A;                      // [channels, states], or [channels] if `tied`
  const float *B, *C;                  // [states]
  float *state, *y;                    // [channels, states], [channels]
  size_t channels, states;
  bool softplus, tied;
};

}  // namespace seqloom::ops::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace seqloom::ops::cpu::HWY_NAMESPACE {

const hn::ScalableTag<float> kTag;
using Vector = hn::Vec<decltype(kTag)>;
constexpr size_t kLanes = hn::MaxLanes(kTag);

/// State of one channel, states in the lanes: h <- decay h + added B; returns C . h. Unless the decay is given, it is
/// 2^(exponent A).
template <bool kTied>
HWY_INLINE float UpdateChannel(const UpdateRows& in, size_t c, float exponent, float decay, float added) {
  float* h = in.state + c * in.states;
  const float* A = in.A + c * in.states;
  Vector sum = hn::Zero(kTag);
  for (size_t n = 0; n < in.states; n += hn::Lanes(kTag)) {
    const size_t count = in.states - n;
    const Vector factor =
        kTied ? hn::Set(kTag, decay) : Exp2(kTag, hn::Mul(hn::Set(kTag, exponent), LoadFirst(kTag, A + n, count)));
    const Vector next = hn::MulAdd(factor, LoadFirst(kTag, h + n, count),
                                   hn::Mul(hn::Set(kTag, added), LoadFirst(kTag, in.B + n, count)));
    StoreFirst(kTag, next, h + n, count);
    sum = hn::MulAdd(next, LoadFirst(kTag, in.C + n, count), sum);
  }
  return hn::GetLane(hn::SumOfLanes(kTag, sum));
}

/// Channels c .. c + count, at most a vector of them: what is of a channel in the lanes.
template <bool kTied>
void UpdateLanes(const UpdateRows& in, size_t c, size_t count) {
  HWY_ALIGN float exponents[kLanes], decays[kLanes] = {}, added[kLanes], read[kLanes] = {};
  const Vector x = LoadFirst(kTag, in.x + c, count);
  Vector step = LoadFirst(kTag, in.dt + c, count);
  if (in.bias != nullptr) step = hn::Add(step, LoadFirst(kTag, in.bias + c, count));
  if (in.softplus) step = Softplus(kTag, step, Exp(kTag, hn::Neg(hn::Abs(step))));
  const Vector exponent = hn::Mul(step, hn::Set(kTag, kLog2E));
  hn::Store(exponent, kTag, exponents);
  hn::Store(hn::Mul(step, x), kTag, added);
  if (in.tied) hn::Store(Exp2(kTag, hn::Mul(exponent, LoadFirst(kTag, in.A + c, count))), kTag, decays);
  for (size_t i = 0; i < std::min(count, hn::Lanes(kTag)); ++i) {
    read[i] = UpdateChannel<kTied>(in, c + i, exponents[i], decays[i], added[i]);
  }
  Vector y = hn::Load(kTag, read);
  if (in.D != nullptr) y = hn::MulAdd(x, LoadFirst(kTag, in.D + c, count), y);
  if (in.z != nullptr) {
    const Vector z = LoadFirst(kTag, in.z + c, count);
    y = hn::Mul(y, hn::Mul(z, Sigmoid(kTag, z)));
  }
  StoreFirst(kTag, y, in.y + c, count);
}

void UpdateChannels(const UpdateRows& in, size_t begin, size_t end) {
  for (size_t c = begin; c < end; c += hn::Lanes(kTag)) {
    in.tied ? UpdateLanes<true>(in, c, end - c) : UpdateLanes<false>(in, c, end - c);
  }
}

}  // namespace seqloom::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace seqloom::ops::cpu {

HWY_EXPORT(UpdateChannels);

namespace {

/// Where slice i of a tensor's slices of `size` floats begins.
const float* slice(const torch::Tensor& t, int64_t i, int64_t size) {
  return t.defined() ? t.const_data_ptr<float>() + i * size : nullptr;
}

}  // namespace

void selective_state_update(const StateUpdateInputs& in, torch::Tensor& state, torch::Tensor& y) {
  const int64_t heads = y.size(1), channels = y.size(2), states = state.size(3), groups = in.B.size(1);
  const bool tied = in.A.dim() == 2;
  const auto update = [&](int64_t b, int64_t h, int64_t begin, int64_t end) {
    const int64_t row = b * heads + h, map = b * groups + h / (heads / groups);
    float* out = y.mutable_data_ptr<float>() + row * channels;
    if (in.rows[b] < 0) {
      std::fill(out + begin, out + end, 0.0f);
      return;
    }
    const UpdateRows rows{slice(in.x, row, channels),
                          slice(in.dt, row, channels),
                          slice(in.z, row, channels),
                          slice(in.D, h, channels),
                          slice(in.bias, h, channels),
                          slice(in.A, h, tied ? channels : channels * states),
                          slice(in.B, map, states),
                          slice(in.C, map, states),
                          state.mutable_data_ptr<float>() + (in.rows[b] * heads + h) * channels * states,
                          out,
                          static_cast<size_t>(channels),
                          static_cast<size_t>(states),
                          in.softplus,
                          tied};
    HWY_DYNAMIC_DISPATCH(UpdateChannels)(rows, static_cast<size_t>(begin), static_cast<size_t>(end));
  };
  constexpr int64_t kBlock = 64, kWork = 1 << 14;  // channels of a block; states that pay to give to another thread
  const int64_t blocks = (channels + kBlock - 1) / kBlock;
  at::parallel_for(0, y.size(0) * heads * blocks, std::max<int64_t>(1, kWork / (kBlock * states)),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t i = begin; i < end; ++i) {
                       const int64_t block = i % blocks, row = i / blocks;
                       update(row / heads, row % heads, block * kBlock, std::min(channels, (block + 1) * kBlock));
                     }
                   });
}

}  // namespace seqloom::ops::cpu
#endif  // HWY_ONCE
