#include "ops/cpu/selective_scan_step.h"

#include <ATen/Parallel.h>

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/selective_scan_step.cpp"
#include <hwy/foreach_target.h>
// clang-format off: must follow foreach_target
#include <hwy/highway.h>
#include "ops/cpu/vector_math-inl.h"
// clang-format on

#ifndef SEQLOOM_SCAN_STEP
#define SEQLOOM_SCAN_STEP
namespace seqloom::ops::cpu {

/// Rows of a matrix that lie `stride` floats apart; null: absent.
struct StepRows {
  const float* data;
  size_t stride;
  const float* row(size_t r) const { return data + r * stride; }
};

struct ScanStep {
  StepRows u, delta, z, B, C;
  const float *A, *D, *bias;
  float* const* states;
  float* y;
  size_t rows, channels, states_per_channel;
  bool softplus;
};

}  // namespace seqloom::ops::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace seqloom::ops::cpu::HWY_NAMESPACE {

const hn::ScalableTag<float> kTag;
using Vector = hn::Vec<decltype(kTag)>;

/// Channels c .. c + count, at most a vector of them, of row r: channels in the lanes, a loop over the states.
void ScanLanes(const ScanStep& in, size_t r, size_t c, size_t count) {
  const Vector u = LoadFirst(kTag, in.u.row(r) + c, count);
  Vector step = LoadFirst(kTag, in.delta.row(r) + c, count);
  if (in.bias != nullptr) step = hn::Add(step, LoadFirst(kTag, in.bias + c, count));
  if (in.softplus) step = Softplus(kTag, step, Exp(kTag, hn::Neg(hn::Abs(step))));
  const Vector added = hn::Mul(step, u), exponent = hn::Mul(step, hn::Set(kTag, kLog2E));
  const float *B = in.B.row(r), *C = in.C.row(r);
  Vector y = hn::Zero(kTag);
  for (size_t n = 0; n < in.states_per_channel; ++n) {
    const size_t at = n * in.channels + c;
    float* state = in.states[r] + at;
    const Vector decay = Exp2(kTag, hn::Mul(exponent, LoadFirst(kTag, in.A + at, count)));
    const Vector h = hn::MulAdd(decay, LoadFirst(kTag, state, count), hn::Mul(added, hn::Set(kTag, B[n])));
    StoreFirst(kTag, h, state, count);
    y = hn::MulAdd(h, hn::Set(kTag, C[n]), y);
  }
  if (in.D != nullptr) y = hn::MulAdd(u, LoadFirst(kTag, in.D + c, count), y);
  if (in.z.data != nullptr) {
    const Vector z = LoadFirst(kTag, in.z.row(r) + c, count);
    y = hn::Mul(y, hn::Mul(z, Sigmoid(kTag, z)));
  }
  StoreFirst(kTag, y, in.y + r * in.channels + c, count);
}

void ScanStepChannels(const ScanStep& in, size_t begin, size_t end) {
  for (size_t r = 0; r < in.rows; ++r) {
    for (size_t c = begin; c < end; c += hn::Lanes(kTag)) ScanLanes(in, r, c, std::min(hn::Lanes(kTag), end - c));
  }
}

}  // namespace seqloom::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace seqloom::ops::cpu {

HWY_EXPORT(ScanStepChannels);

namespace {

const float* data(const torch::Tensor& t) {
  return t.defined() ? t.const_data_ptr<float>() : nullptr;
}

StepRows rows(const torch::Tensor& t) {
  return {data(t), t.defined() ? static_cast<size_t>(t.stride(0)) : 0};
}

}  // namespace

void selective_scan_step(const ScanStepInputs& in, torch::Tensor& y) {
  const ScanStep step{rows(in.u),
                      rows(in.delta),
                      rows(in.z),
                      rows(in.B),
                      rows(in.C),
                      data(in.A),
                      data(in.D),
                      data(in.bias),
                      in.states.data(),
                      y.mutable_data_ptr<float>(),
                      in.states.size(),
                      static_cast<size_t>(y.size(1)),
                      static_cast<size_t>(in.A.size(0)),
                      in.softplus};
  constexpr int64_t kBlock = 64, kWork = 1 << 13;  // channels of a block; states that pay to give to another thread
  const int64_t blocks = (y.size(1) + kBlock - 1) / kBlock, cost = kBlock * y.size(0) * in.A.size(0);
  at::parallel_for(0, blocks, std::max<int64_t>(1, kWork / cost), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(ScanStepChannels)
    (step, static_cast<size_t>(begin * kBlock), std::min(step.channels, static_cast<size_t>(end * kBlock)));
  });
}

}  // namespace seqloom::ops::cpu
#endif  // HWY_ONCE
