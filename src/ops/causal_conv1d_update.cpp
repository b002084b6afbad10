#include "ops/causal_conv1d_update.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <fmt/ostream.h>
#include <torch/library.h>

#include "base/error.h"
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

/// One channel of one row; `line` has room for W - 1 + T inputs. `first` is where in the state x_0 goes if it is a
/// ring, -1 if it is not.
template <typename State, typename Math>
void update_channel(const Grid<const Math>& x, const Grid<State>& state, const Grid<Math>& y, const Math* taps,
                    Math bias, int64_t e, int64_t width, int64_t length, int64_t tokens, int64_t first, Math* line) {
  const int64_t before = width - 1;
  for (int64_t j = 0; j < before; ++j) {
    const int64_t at = first < 0 ? length - before + j : (first - before + j + length) % length;
    line[j] = static_cast<Math>(state.at(e, at));
  }
  for (int64_t t = 0; t < tokens; ++t) line[before + t] = x.at(e, t);
  for (int64_t t = 0; t < tokens; ++t) {
    Math sum = bias;
    for (int64_t j = 0; j < width; ++j) sum += taps[j] * line[t + j];
    y.at(e, t) = sum;
  }
  if (first >= 0) {
    for (int64_t t = 0; t < tokens; ++t) state.at(e, (first + t) % length) = static_cast<State>(x.at(e, t));
    return;
  }
  for (int64_t i = 0; i < length; ++i) {
    state.at(e, i) = i + tokens < length ? state.at(e, i + tokens) : static_cast<State>(x.at(e, i + tokens - length));
  }
}

template <typename State, typename Math>
void update(const Tensor& x, const Tensor& state, const Tensor& taps, const Optional& bias, const Tensor& y,
            const std::vector<int64_t>& rows, const std::vector<int64_t>& seen) {
  const int64_t channels = x.size(1), tokens = x.size(2), width = taps.size(1), length = state.size(2);
  const Math* weights = taps.const_data_ptr<Math>();
  const Math* offsets = bias ? bias->const_data_ptr<Math>() : nullptr;
  const auto work = [&](int64_t begin, int64_t end) {
    std::vector<Math> line(width - 1 + tokens);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / channels, e = i % channels;
      if (rows[b] < 0) continue;
      const int64_t first = seen.empty() || length == 0 ? -1 : (seen[b] % length + length) % length;
      update_channel<State, Math>(grid_of<const Math>(x, b), grid_of<State>(state, rows[b]), grid_of<Math>(y, b),
                                  weights + e * width, offsets == nullptr ? Math(0) : offsets[e], e, width, length,
                                  tokens, first, line.data());
    }
  };
  constexpr int64_t kWork = 1 << 14;  // products that pay to give to another thread
  at::parallel_for(0, x.size(0) * channels, std::max<int64_t>(1, kWork / (tokens * width + length)), work);
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
  m.def(
      "causal_conv1d_update(Tensor x, Tensor(a!) state, Tensor weight, Tensor? bias=None, bool silu=False, Tensor? "
      "seen=None, Tensor? rows=None) -> Tensor");
}

TORCH_LIBRARY_IMPL(seqloom, CompositeExplicitAutograd, m) {
  m.impl("causal_conv1d_update", &causal_conv1d_update);
}

TORCH_LIBRARY_IMPL(seqloom, Meta, m) {
  m.impl("causal_conv1d_update",
         [](const Tensor& x, const Tensor&, const Tensor&, const Optional&, bool, const Optional&, const Optional&) {
           return torch::empty({x.size(0), x.size(2), x.size(1)}, x.options()).transpose(1, 2);
         });
}

}  // namespace seqloom::ops
