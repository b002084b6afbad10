#include "ops/cpu/attention_step.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "ops/cpu/balanced_for.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/attention_step.cpp"
#include <hwy/foreach_target.h>
// clang-format off: must follow foreach_target
#include <hwy/highway.h>
#include "ops/cpu/vector_math-inl.h"
// clang-format on

#ifndef SEQLOOM_ATTENTION_STEP
#define SEQLOOM_ATTENTION_STEP
namespace seqloom::ops::cpu {

/// Keys that are scored together.
constexpr size_t kStepKeys = 64;

/// The query heads [group, d] of one key head and what they read.
struct HeadStep {
  const float* q;
  const float *keys, *values;  // [n, d]
  float* o;                    // [group, d]
  size_t group, count, width;
  float scale;
};

}  // namespace seqloom::ops::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace seqloom::ops::cpu::HWY_NAMESPACE {

const hn::ScalableTag<float> kTag;
using Vector = hn::Vec<decltype(kTag)>;

float Dot(const float* a, const float* b, size_t n) {
  Vector sum = hn::Zero(kTag);
  for (size_t i = 0; i < n; i += hn::Lanes(kTag)) {
    sum = hn::MulAdd(LoadFirst(kTag, a + i, n - i), LoadFirst(kTag, b + i, n - i), sum);
  }
  return hn::GetLane(hn::SumOfLanes(kTag, sum));
}

/// scores[j] <- e^{scores[j] - largest}; returns their sum. The array is padded to whole vectors.
float Exponentials(float* scores, size_t count, float largest) {
  Vector sum = hn::Zero(kTag);
  for (size_t j = 0; j < count; j += hn::Lanes(kTag)) {
    const Vector e = Exp(kTag, hn::Sub(LoadFirst(kTag, scores + j, count - j), hn::Set(kTag, largest)));
    StoreFirst(kTag, e, scores + j, count - j);
    sum = hn::Add(sum, LoadFirst(kTag, scores + j, count - j));
  }
  return hn::GetLane(hn::SumOfLanes(kTag, sum));
}

/// o <- o shrink + sum_j weights[j] values[j].
void AddWeighted(const float* weights, const float* values, size_t count, size_t width, float shrink, float* o) {
  for (size_t c = 0; c < width; c += hn::Lanes(kTag)) {
    const size_t left = width - c;
    Vector sum = hn::Mul(LoadFirst(kTag, o + c, left), hn::Set(kTag, shrink));
    for (size_t j = 0; j < count; ++j) {
      sum = hn::MulAdd(hn::Set(kTag, weights[j]), LoadFirst(kTag, values + j * width + c, left), sum);
    }
    StoreFirst(kTag, sum, o + c, left);
  }
}

/// Online softmax of one query over all keys, block by block.
void AttendQuery(const HeadStep& in, const float* q, float* o) {
  HWY_ALIGN float scores[kStepKeys];
  float largest = -INFINITY, total = 0;
  std::fill(o, o + in.width, 0.0f);
  for (size_t first = 0; first < in.count; first += kStepKeys) {
    const size_t count = std::min(kStepKeys, in.count - first);
    float highest = largest;
    for (size_t j = 0; j < count; ++j) {
      scores[j] = in.scale * Dot(q, in.keys + (first + j) * in.width, in.width);
      highest = scores[j] > highest ? scores[j] : highest;
    }
    const float shrink = largest == -INFINITY ? 0 : std::exp(largest - highest);
    total = total * shrink + Exponentials(scores, count, highest);
    AddWeighted(scores, in.values + first * in.width, count, in.width, shrink, o);
    largest = highest;
  }
  const float inverse = 1 / total;
  for (size_t c = 0; c < in.width; ++c) o[c] *= inverse;
}

void AttendHead(const HeadStep& in) {
  for (size_t g = 0; g < in.group; ++g) AttendQuery(in, in.q + g * in.width, in.o + g * in.width);
}

}  // namespace seqloom::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace seqloom::ops::cpu {

HWY_EXPORT(AttendHead);

namespace {

/// cos and sin of a row's angles, as float32.
struct Turn {
  std::vector<float> cos, sin;
  bool interleaved;

  Turn(const AttentionStepInputs& in, size_t row) : interleaved(in.interleaved) {
    if (!in.frequencies.defined()) return;
    const auto* frequency = in.frequencies.const_data_ptr<double>();
    for (int64_t m = 0; m < in.frequencies.size(0); ++m) {
      const double angle = static_cast<double>(in.positions[row]) * frequency[m];
      cos.push_back(static_cast<float>(std::cos(angle)));
      sin.push_back(static_cast<float>(std::sin(angle)));
    }
  }

  /// A head of `width` channels from x, turned, into y.
  void apply(const float* x, float* y, size_t width) const {
    std::memcpy(y, x, width * sizeof(float));
    const size_t pairs = cos.size();
    for (size_t m = 0; m < pairs; ++m) {
      const size_t i = interleaved ? 2 * m : m, j = interleaved ? 2 * m + 1 : m + pairs;
      y[i] = x[i] * cos[m] - x[j] * sin[m];
      y[j] = x[i] * sin[m] + x[j] * cos[m];
    }
  }
};

float* entry(const torch::Tensor& cache, int64_t head, int64_t at) {
  return cache.mutable_data_ptr<float>() + head * cache.stride(1) + at * cache.size(3);
}

/// All keys and values into their caches, and the turned queries into `queries` [R, H, d].
void write_tokens(const AttentionStepInputs& in, float* queries) {
  const int64_t heads = in.q.size(1), key_heads = in.k.size(1), width = in.q.size(2);
  for (size_t r = 0; r < in.lengths.size(); ++r) {
    const Turn turn(in, r);
    const auto row = static_cast<int64_t>(r);
    const auto* q = in.q.const_data_ptr<float>() + row * in.q.stride(0);
    const auto* k = in.k.const_data_ptr<float>() + row * in.k.stride(0);
    const auto* v = in.v.const_data_ptr<float>() + row * in.v.stride(0);
    for (int64_t h = 0; h < heads; ++h) turn.apply(q + h * width, queries + (row * heads + h) * width, width);
    for (int64_t h = 0; h < key_heads; ++h) {
      turn.apply(k + h * width, entry(in.keys[r], h, in.lengths[r] - 1), width);
      std::memcpy(entry(in.values[r], h, in.lengths[r] - 1), v + h * width, width * sizeof(float));
    }
  }
}

}  // namespace

void attention_step(const AttentionStepInputs& in, torch::Tensor& o) {
  const int64_t heads = in.q.size(1), key_heads = in.k.size(1), width = in.q.size(2), share = heads / key_heads;
  std::vector<float> queries(in.q.numel());
  write_tokens(in, queries.data());
  const auto work = [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = task / key_heads, head = task % key_heads, length = in.lengths[row];
      const int64_t seen = std::min(length, in.window.value_or(length));
      const int64_t first = (row * heads + head * share) * width;
      HWY_DYNAMIC_DISPATCH(AttendHead)
      ({queries.data() + first, entry(in.keys[row], head, length - seen), entry(in.values[row], head, length - seen),
        o.mutable_data_ptr<float>() + first, static_cast<size_t>(share), static_cast<size_t>(seen),
        static_cast<size_t>(width), static_cast<float>(in.scale)});
    }
  };
  std::vector<int64_t> costs;
  for (const int64_t length : in.lengths)
    costs.insert(costs.end(), key_heads, std::min(length, in.window.value_or(length)));
  const TaskCosts all(costs);
  constexpr int64_t kWork = 1 << 15;  // products that pay to give to another thread
  if (all.total() * width * share < kWork) return work(0, static_cast<int64_t>(costs.size()));
  balanced_for(all, work);
}

}  // namespace seqloom::ops::cpu
#endif  // HWY_ONCE
