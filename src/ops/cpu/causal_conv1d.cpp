#include "ops/cpu/causal_conv1d.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/causal_conv1d.cpp"
#include <hwy/foreach_target.h>
// clang-format off: must follow foreach_target
#include <hwy/highway.h>
#include "ops/cpu/vector_math-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace seqloom::ops::cpu::HWY_NAMESPACE {

// Channels in the lanes, one token's row at a time; `taps` [W, E] is the weight transposed, `history` begins W-1 rows
// before the first output.

/// y rows [rows, E] of one sequence.
void ConvForward(const float* history, const float* taps, const float* bias, float* y, size_t rows, size_t channels,
                 size_t width, bool silu) {
  const hn::ScalableTag<float> d;
  const size_t lanes = hn::Lanes(d);
  for (size_t t = 0; t < rows; ++t) {
    for (size_t e = 0; e < channels; e += lanes) {
      const size_t count = HWY_MIN(lanes, channels - e);
      auto sum = bias != nullptr ? LoadFirst(d, bias + e, count) : hn::Zero(d);
      for (size_t j = 0; j < width; ++j) {
        sum = hn::MulAdd(LoadFirst(d, taps + j * channels + e, count),
                         LoadFirst(d, history + (t + j) * channels + e, count), sum);
      }
      if (silu) sum = hn::Mul(sum, Sigmoid(d, sum));
      StoreFirst(d, sum, y + t * channels + e, count);
    }
  }
}

/// da [rows, E]: the gradient before the activation. Adds to dtaps [W, E] and, where there is a bias, dbias [E].
void ConvBackwardTaps(const float* dy, const float* history, const float* taps, const float* bias, float* da,
                      float* dtaps, float* dbias, size_t rows, size_t channels, size_t width, bool silu) {
  const hn::ScalableTag<float> d;
  const size_t lanes = hn::Lanes(d);
  const auto one = hn::Set(d, 1.0f);
  for (size_t t = 0; t < rows; ++t) {
    for (size_t e = 0; e < channels; e += lanes) {
      const size_t count = HWY_MIN(lanes, channels - e);
      auto gradient = LoadFirst(d, dy + t * channels + e, count);
      if (silu) {
        auto a = bias != nullptr ? LoadFirst(d, bias + e, count) : hn::Zero(d);
        for (size_t j = 0; j < width; ++j) {
          a = hn::MulAdd(LoadFirst(d, taps + j * channels + e, count),
                         LoadFirst(d, history + (t + j) * channels + e, count), a);
        }
        const auto s = Sigmoid(d, a);
        gradient = hn::Mul(gradient, hn::Mul(s, hn::MulAdd(a, hn::Sub(one, s), one)));
      }
      StoreFirst(d, gradient, da + t * channels + e, count);
      for (size_t j = 0; j < width; ++j) {
        const auto x = LoadFirst(d, history + (t + j) * channels + e, count);
        StoreFirst(d, hn::MulAdd(gradient, x, LoadFirst(d, dtaps + j * channels + e, count)), dtaps + j * channels + e,
                   count);
      }
      if (dbias != nullptr) StoreFirst(d, hn::Add(gradient, LoadFirst(d, dbias + e, count)), dbias + e, count);
    }
  }
}

/// dx rows first .. last of the history of one sequence whose da has `tokens` rows: dx_s = sum_j taps_j da_{s-j}.
void ConvBackwardInput(const float* da, const float* taps, float* dx, size_t first, size_t last, size_t tokens,
                       size_t channels, size_t width) {
  const hn::ScalableTag<float> d;
  const size_t lanes = hn::Lanes(d);
  for (size_t s = first; s < last; ++s) {
    for (size_t e = 0; e < channels; e += lanes) {
      const size_t count = HWY_MIN(lanes, channels - e);
      auto sum = hn::Zero(d);
      for (size_t j = 0; j < width; ++j) {
        if (s < j || s - j >= tokens) continue;
        sum = hn::MulAdd(LoadFirst(d, taps + j * channels + e, count), LoadFirst(d, da + (s - j) * channels + e, count),
                         sum);
      }
      StoreFirst(d, sum, dx + s * channels + e, count);
    }
  }
}

}  // namespace seqloom::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace seqloom::ops::cpu {

HWY_EXPORT(ConvForward);
HWY_EXPORT(ConvBackwardTaps);
HWY_EXPORT(ConvBackwardInput);

namespace {

/// Rows that one task takes. The cut does not depend on the number of threads, so results do not either.
constexpr int64_t kRows = 256;

int64_t blocks(int64_t rows) {
  return (rows + kRows - 1) / kRows;
}

const float* pointer(const torch::Tensor& t) {
  return t.defined() ? t.const_data_ptr<float>() : nullptr;
}

/// Runs work(sequence, first row, last row) over all blocks of rows in parallel.
template <typename Work>
void for_row_blocks(int64_t batch, int64_t rows, Work work) {
  const int64_t per_sequence = blocks(rows);
  at::parallel_for(0, batch * per_sequence, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % per_sequence * kRows;
      work(task / per_sequence, first, std::min(rows, first + kRows));
    }
  });
}

}  // namespace

torch::Tensor causal_conv1d_forward(const torch::Tensor& history, const torch::Tensor& weight,
                                    const torch::Tensor& bias, bool silu) {
  const int64_t batch = history.size(0), channels = history.size(2), width = weight.size(1);
  const int64_t tokens = history.size(1) - width + 1;
  const torch::Tensor taps = weight.t().contiguous();
  torch::Tensor y = torch::empty({batch, tokens, channels}, history.options());
  float* out = y.mutable_data_ptr<float>();
  for_row_blocks(batch, tokens, [&](int64_t b, int64_t first, int64_t last) {
    HWY_DYNAMIC_DISPATCH(ConvForward)
    (pointer(history) + (b * history.size(1) + first) * channels, pointer(taps), pointer(bias),
     out + (b * tokens + first) * channels, last - first, channels, width, silu);
  });
  return y;
}

std::tuple<torch::Tensor, torch::Tensor, torch::Tensor> causal_conv1d_backward(const torch::Tensor& dy,
                                                                               const torch::Tensor& history,
                                                                               const torch::Tensor& weight,
                                                                               const torch::Tensor& bias, bool silu) {
  const int64_t batch = history.size(0), channels = history.size(2), width = weight.size(1), tokens = dy.size(1);
  const torch::Tensor taps = weight.t().contiguous();
  torch::Tensor da = torch::empty_like(dy), dx = torch::empty_like(history);
  // every task sums into a part of its own: taps and, last, bias
  torch::Tensor sums = torch::zeros({batch * blocks(tokens), width + 1, channels}, dy.options());
  float *da_out = da.mutable_data_ptr<float>(), *dx_out = dx.mutable_data_ptr<float>(),
        *sum_out = sums.mutable_data_ptr<float>();
  for_row_blocks(batch, tokens, [&](int64_t b, int64_t first, int64_t last) {
    float* own = sum_out + (b * blocks(tokens) + first / kRows) * (width + 1) * channels;
    const int64_t row = (b * tokens + first) * channels;
    HWY_DYNAMIC_DISPATCH(ConvBackwardTaps)
    (pointer(dy) + row, pointer(history) + (b * history.size(1) + first) * channels, pointer(taps), pointer(bias),
     da_out + row, own, bias.defined() ? own + width * channels : nullptr, last - first, channels, width, silu);
  });
  for_row_blocks(batch, history.size(1), [&](int64_t b, int64_t first, int64_t last) {
    HWY_DYNAMIC_DISPATCH(ConvBackwardInput)
    (da_out + b * tokens * channels, pointer(taps), dx_out + b * history.size(1) * channels, first, last, tokens,
     channels, width);
  });
  const torch::Tensor total = sums.sum(0);
  return {dx, total.narrow(0, 0, width).t().contiguous(), bias.defined() ? total.select(0, width) : torch::Tensor()};
}

}  // namespace seqloom::ops::cpu
#endif  // HWY_ONCE
