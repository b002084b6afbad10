#include "ops/causal_conv1d_update.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <fmt/ostream.h>
#include <torch/library.h>

#include <algorithm>

#include "base/error.h"
#include "ops/operator.h"
#include "ops/packing.h"
#include "ops/state_rows.h"

namespace seqloom::ops {
namespace {

using torch::Tensor;
using Optional = std::optional<Tensor>;

void check_shapes(const Tensor& x, const Tensor& state, const Tensor& weight, const Optional& bias,
                  const Optional& seen) {
  if (x.dim() != 3 || weight.dim() != 2 || weight.size(0) != x.size(1) || weight.size(1) < 1) {
    misuse("causal_conv1d_update: x {}, weight {}: expected x [B, E, T] and weight [E, W]", fmt::streamed(x.sizes()),
           fmt::streamed(weight.sizes()));
  }
  if (state.dim() != 3 || state.size(1) != x.size(1) || state.size(2) < weight.size(1) - 1) {
    misuse("causal_conv1d_update: the state is {}, expected [B, {}, L] with L >= {}", fmt::streamed(state.sizes()),
           x.size(1), weight.size(1) - 1);
  }
  if (bias && (bias->dim() != 1 || bias->size(0) != x.size(1))) {
    misuse("causal_conv1d_update: bias is {}, expected [{}]", fmt::streamed(bias->sizes()), x.size(1));
  }
  if (seen && (seen->dim() != 1 || seen->size(0) != x.size(0))) {
    misuse("causal_conv1d_update: the counts of inputs are {}, expected [{}]", fmt::streamed(seen->sizes()), x.size(0));
  }
}

/// What lies where, of one row: channels `by_channel` apart, inputs `by_input` apart.
template <typename T>
struct Grid {
  T* data;
  int64_t by_channel, by_input;
  T& at(int64_t e, int64_t i) const { return data[e * by_channel + i * by_input]; }
};

template <typename T>
Grid<T> grid_of(const Tensor& t, int64_t row) {
  return {t.data_ptr<std::remove_const_t<T>>() + row * t.stride(0), t.stride(1), t.stride(2)};
}

constexpr int64_t kBlock = 64;  // channels that are worked on together, so that loops over them are vectors

/// Channels e .. e + count of one row. `line` has room for W - 1 + T inputs of a block. `first` is
/// where in the state x_0 goes if it is a ring, -1 if it is not.
template <typename State, typename Math>
void update_block(const Grid<const Math>& x, const Grid<State>& state, const Grid<Math>& y, const Math* taps,
                  const Math* bias, int64_t e, int64_t count, int64_t width, int64_t length, int64_t tokens,
                  int64_t first, Math* line) {
  const int64_t before = width - 1;
  for (int64_t j = 0; j < before; ++j) {
    const int64_t at = first < 0 ? length - before + j : (first - before + j + length) % length;
    for (int64_t i = 0; i < count; ++i) line[j * kBlock + i] = static_cast<Math>(state.at(e + i, at));
  }
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < count; ++i) line[(before + t) * kBlock + i] = x.at(e + i, t);
  }
  for (int64_t t = 0; t < tokens; ++t) {
    Math sums[kBlock];
    for (int64_t i = 0; i < count; ++i) sums[i] = bias == nullptr ? Math(0) : bias[e + i];
    for (int64_t j = 0; j < width; ++j) {
      const Math *inputs = line + (t + j) * kBlock, *weights = taps + e * width + j;
      for (int64_t i = 0; i < count; ++i) sums[i] += weights[i * width] * inputs[i];
    }
    for (int64_t i = 0; i < count; ++i) y.at(e + i, t) = sums[i];
  }
  if (first >= 0) {
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t i = 0; i < count; ++i) state.at(e + i, (first + t) % length) = static_cast<State>(x.at(e + i, t));
    }
    return;
  }
  for (int64_t k = 0; k < length; ++k) {
    const int64_t from = k + tokens;
    for (int64_t i = 0; i < count; ++i) {
      state.at(e + i, k) = from < length ? state.at(e + i, from) : static_cast<State>(x.at(e + i, from - length));
    }
  }
}

template <typename State, typename Math>
void update(const Tensor& x, const Tensor& state, const Tensor& taps, const Optional& bias, const Tensor& y,
            const std::vector<int64_t>& rows, const std::vector<int64_t>& seen) {
  const int64_t channels = x.size(1), tokens = x.size(2), width = taps.size(1), length = state.size(2);
  const int64_t blocks = (channels + kBlock - 1) / kBlock;
  const Math* weights = taps.const_data_ptr<Math>();
  const Math* offsets = bias ? bias->const_data_ptr<Math>() : nullptr;
  const auto work = [&](int64_t begin, int64_t end) {
    std::vector<Math> line((width - 1 + tokens) * kBlock);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / blocks, e = i % blocks * kBlock;
      if (rows[b] < 0) continue;
      const int64_t first = seen.empty() || length == 0 ? -1 : (seen[b] % length + length) % length;
      update_block<State, Math>(grid_of<const Math>(x, b), grid_of<State>(state, rows[b]), grid_of<Math>(y, b), weights,
                                offsets, e, std::min(kBlock, channels - e), width, length, tokens, first, line.data());
    }
  };
  constexpr int64_t kWork = 1 << 14;  // products that pay to give to another thread
  at::parallel_for(0, x.size(0) * blocks, std::max<int64_t>(1, kWork / (kBlock * (tokens * width + length))), work);
}

}  // namespace

Tensor causal_conv1d_update(const Tensor& x, const Tensor& state, const Tensor& weight, const Optional& bias, bool silu,
                            const Optional& seen, const Optional& rows) {
  check_shapes(x, state, weight, bias, seen);
  const auto places = state_rows(rows, x.size(0), state.size(0), "causal_conv1d_update");
  const std::vector<int64_t> counts =
      seen ? to_vector(seen->to(torch::kInt64).cpu().contiguous()) : std::vector<int64_t>();
  const at::NoGradGuard no_gradient;
  const Tensor held = state.is_cpu() ? state : state.cpu();  // another device's state takes the way over the CPU
  Tensor y;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, held.scalar_type(), "causal_conv1d_update", [&] {
    using Math = at::opmath_type<scalar_t>;
    const auto math = torch::TensorOptions().dtype(c10::CppTypeToScalarType<Math>::value);
    const auto offsets = bias ? Optional(bias->to(math).contiguous()) : std::nullopt;
    // Token-major, as the convolution of a whole sequence returns it.
    y = torch::zeros({x.size(0), x.size(2), x.size(1)}, math).transpose(1, 2);
    update<scalar_t, Math>(x.to(math), held, weight.to(math).contiguous(), offsets, y, places, counts);
  });
  if (!held.is_same(state)) state.copy_(held);
  if (silu) {
    Tensor plain = y.transpose(1, 2);
    torch::silu_(plain);
  }
  return y.to(x.options());
}

TORCH_LIBRARY_FRAGMENT(seqloom, m) {
  define_update(
      m,
      "causal_conv1d_update(Tensor x, Tensor(a!) state, Tensor weight, Tensor? bias=None, bool silu=False, Tensor? "
      "seen=None, Tensor? rows=None) -> Tensor",
      &causal_conv1d_update);
}

}  // namespace seqloom::ops
