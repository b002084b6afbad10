#include "ops/ema.h"

#include <fmt/ostream.h>

#include <cmath>

#include "base/error.h"
#include "ops/chunks.h"
#include "ops/operator.h"
#include "ops/precision.h"

namespace seqloom::ops {
namespace {

using torch::Tensor;

void check_shapes(const Tensor& x, const Tensor& delta, const Tensor& alpha, const Tensor& beta, const Tensor& gamma,
                  const Tensor& omega, const std::optional<Tensor>& state, const std::optional<Tensor>& lengths) {
  if (x.dim() != 3 || x.size(1) < 1) misuse("ema: x is {}, expected [B, T, D], T >= 1", fmt::streamed(x.sizes()));
  if (gamma.dim() != 2 || gamma.size(0) != x.size(2) || gamma.size(1) < 1) {
    misuse("ema: gamma is {}, expected [{}, N]", fmt::streamed(gamma.sizes()), x.size(2));
  }
  const int64_t channels = gamma.size(0), averages = gamma.size(1);
  const auto expect = [](const char* name, const Tensor& t, std::vector<int64_t> wanted) {
    if (t.sizes() == torch::IntArrayRef(wanted)) return;
    misuse("ema: {} is {}, expected {}", name, fmt::streamed(t.sizes()), fmt::streamed(torch::IntArrayRef(wanted)));
  };
  expect("delta", delta, {channels, averages, 1});
  expect("alpha", alpha, {channels, averages, 1});
  expect("beta", beta, {channels, averages, 1});
  expect("omega", omega, {channels});
  if (state) expect("the initial state", *state, {x.size(0), channels, averages});
  if (lengths) expect("lengths", *lengths, {x.size(0)});
}

/// The recurrence in numbers, all of a channel d.
struct Kernel {
  Tensor powers;  // q^0 .. q^C, [D, N, C+1]
  Tensor write;   // p beta, [D, N]
  Tensor read;    // gamma / sqrt(N), [D, N]

  int64_t chunk() const { return powers.size(2) - 1; }
  Tensor decay(int64_t tokens) const { return powers.select(2, tokens); }
  /// What each token of a chunk adds to the state at its end, [D, C, N].
  Tensor to_end() const { return (powers.narrow(2, 0, chunk()).flip(2) * write.unsqueeze(-1)).transpose(1, 2); }
  /// What the state before a chunk adds to each of its tokens, [D, N, C].
  Tensor from_start() const { return powers.narrow(2, 1, chunk()) * read.unsqueeze(-1); }
  /// What each token (dimension 1) of a chunk adds to each (dimension 2), [D, C, C].
  Tensor within() const {
    const Tensor lags = torch::einsum("dn,dnc->dc", {read * write, powers.narrow(2, 0, chunk())});
    const Tensor at = torch::arange(chunk(), lags.options().dtype(torch::kInt64).requires_grad(false));
    const Tensor lag = (at.unsqueeze(0) - at.unsqueeze(1)).clamp_min(0);
    return lags.index_select(1, lag.flatten()).unflatten(1, {chunk(), chunk()}).triu();
  }
};

Kernel make_kernel(const Tensor& delta, const Tensor& alpha, const Tensor& beta, const Tensor& gamma, int64_t chunk) {
  const Tensor p = torch::sigmoid(widened(delta)), q = 1 - p * torch::sigmoid(widened(alpha));  // [D, N, 1]
  const Tensor exponents = torch::arange(chunk + 1, q.options().requires_grad(false));
  return {torch::pow(q, exponents), (p * widened(beta)).squeeze(-1),
          widened(gamma) / std::sqrt(static_cast<double>(gamma.size(1)))};
}

/// The state after the first lengths[b] tokens: the one before the chunk that they end in, and what is left of them.
Tensor state_after(const Tensor& lengths, const Tensor& x, const Tensor& states, const Kernel& kernel) {
  const int64_t size = kernel.chunk(), batch = x.size(0), channels = x.size(2);
  const Tensor chunks = lengths.floor_divide(size), rest = lengths - chunks * size;
  const Tensor before = states.gather(1, chunks.view({-1, 1, 1, 1}).expand({batch, 1, channels, states.size(3)}));
  const Tensor decay = kernel.powers.index_select(2, rest).permute({2, 0, 1});  // [B, D, N]
  // the last `size` tokens before the end, those of earlier chunks taken out
  const Tensor place = torch::arange(size, lengths.options()).unsqueeze(0) - size + rest.unsqueeze(1);
  const Tensor index = (place + (chunks * size).unsqueeze(1)).clamp_min(0).unsqueeze(-1).expand({-1, -1, channels});
  const Tensor last = torch::where((place >= 0).unsqueeze(-1), x.gather(1, index), torch::zeros({1}, x.options()));
  return decay * before.squeeze(1) + torch::einsum("bcd,dcn->bdn", {last, kernel.to_end()});
}

}  // namespace

std::tuple<Tensor, Tensor> ema(const Tensor& x, const Tensor& delta, const Tensor& alpha, const Tensor& beta,
                               const Tensor& gamma, const Tensor& omega, const std::optional<Tensor>& initial_state,
                               const std::optional<Tensor>& lengths, int64_t chunk) {
  check_shapes(x, delta, alpha, beta, gamma, omega, initial_state, lengths);
  const int64_t batch = x.size(0), tokens = x.size(1), channels = x.size(2), averages = gamma.size(1);
  const int64_t size = std::min(chunk, tokens), chunks = (tokens + size - 1) / size;
  const Kernel kernel = make_kernel(delta, alpha, beta, gamma, size);
  const Tensor input = widened(x);
  const Tensor initial = initial_state
                             ? widened(*initial_state)
                             : torch::zeros({batch, channels, averages}, input.options().requires_grad(false));

  const Tensor filled = torch::constant_pad_nd(input, {0, 0, 0, chunks * size - tokens});
  const Tensor by_channel = filled.permute({2, 0, 1}).reshape({channels, batch * chunks, size});
  const Tensor added = torch::bmm(by_channel, kernel.to_end()).view({channels, batch, 1, chunks, averages});
  const auto [before, last] = scan_chunk_states(kernel.decay(size).expand({1, 1, chunks, channels, averages}),
                                                added.permute({1, 2, 3, 0, 4}), initial.unsqueeze(1));
  const Tensor states = before.squeeze(1);  // before each chunk, [B, T/C, D, N]
  const Tensor carried = states.permute({2, 0, 1, 3}).reshape({channels, batch * chunks, averages});
  const Tensor mixed = torch::baddbmm(torch::bmm(by_channel, kernel.within()), carried, kernel.from_start());
  const Tensor averaged = mixed.view({channels, batch, chunks * size}).narrow(2, 0, tokens).permute({1, 2, 0});
  const Tensor y = torch::silu(averaged + widened(omega) * input).to(x.scalar_type());

  const Tensor ends = lengths ? *lengths : torch::full({batch}, tokens, x.options().dtype(torch::kInt64));
  return {y, state_after(ends, input, torch::cat({states, last}, 1), kernel)};
}

TORCH_LIBRARY_FRAGMENT(seqloom, m) {
  define(
      m,
      "ema(Tensor x, Tensor delta, Tensor alpha, Tensor beta, Tensor gamma, Tensor omega, Tensor? initial_state=None, "
      "Tensor? lengths=None, int chunk=64) -> (Tensor, Tensor)",
      &ema);
}

}  // namespace seqloom::ops
