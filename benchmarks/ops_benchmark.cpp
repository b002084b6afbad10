// Speed of the ops. Counters: tokens/s, and for memory-bound ops bytes/s beside a plain copy of the same tensor.
#include <benchmark/benchmark.h>

#include <algorithm>

#include "base/torch.h"
#include "io/toml.h"
#include "mixers/mixer.h"
#include "ops/causal_conv1d.h"
#include "ops/selective_scan.h"
#include "ops/varlen_attention.h"

namespace {

using torch::Tensor;

void count_tokens(benchmark::State& state, int64_t tokens) {
  state.counters["tokens/s"] =
      benchmark::Counter(static_cast<double>(tokens), benchmark::Counter::kIsIterationInvariantRate);
}

/// Arguments: channels E, tokens T, threads, with the backward pass or not.
void selective_scan(benchmark::State& state) {
  const int64_t channels = state.range(0), tokens = state.range(1), states = 16;
  const bool backward = state.range(3) != 0;
  torch::set_num_threads(static_cast<int>(state.range(2)));
  const auto channel_major = [&](int64_t width) {
    return torch::randn({1, tokens, width}).requires_grad_(backward).transpose(1, 2);
  };
  const Tensor u = channel_major(channels), delta = channel_major(channels), z = channel_major(channels);
  const Tensor B = channel_major(states), C = channel_major(states);
  const Tensor A = (-torch::rand({channels, states}) - 0.1).requires_grad_(backward), D = torch::ones({channels});
  for ([[maybe_unused]] auto _ : state) {
    const auto [y, last] = seqloom::ops::selective_scan(u, delta, A, B, C, D, z, {}, true, {});
    if (backward) y.sum().backward();
  }
  count_tokens(state, tokens);
}
BENCHMARK(selective_scan)
    ->ArgNames({"E", "T", "threads", "backward"})
    ->ArgsProduct({{512, 1536}, {1024, 4096, 16384}, {1, 2}, {0, 1}})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

void causal_conv1d(benchmark::State& state) {
  const int64_t channels = state.range(0), tokens = state.range(1);
  const bool backward = state.range(2) != 0;
  const Tensor x = torch::randn({1, tokens, channels}).requires_grad_(backward).transpose(1, 2);
  const Tensor weight = torch::randn({channels, 4}).requires_grad_(backward), bias = torch::randn({channels});
  for ([[maybe_unused]] auto _ : state) {
    const auto [y, last] = seqloom::ops::causal_conv1d(x, weight, bias, {}, true);
    if (backward) y.sum().backward();
  }
  count_tokens(state, tokens);
  state.SetBytesProcessed(state.iterations() * tokens * channels * 8);
}
BENCHMARK(causal_conv1d)
    ->ArgNames({"E", "T", "backward"})
    ->ArgsProduct({{512, 1536}, {4096, 16384}, {0, 1}})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

/// Causal attention of 8 heads of 64. Arguments: tokens T, 0: ours, 1: torch's, with the backward pass or not.
void attention(benchmark::State& state) {
  const int64_t tokens = state.range(0);
  const bool peer = state.range(1) != 0, backward = state.range(2) != 0;
  const auto rows = [&] { return torch::randn({tokens, 8, 64}).requires_grad_(backward); };
  const Tensor q = rows(), k = rows(), v = rows(), offsets = torch::tensor({int64_t{0}, tokens});
  const auto batch = [](const Tensor& x) { return x.transpose(0, 1).unsqueeze(0); };
  for ([[maybe_unused]] auto _ : state) {
    const Tensor o = peer ? at::scaled_dot_product_attention(batch(q), batch(k), batch(v), {}, 0, /*is_causal=*/true)
                          : std::get<0>(seqloom::ops::varlen_attention(q, k, v, offsets, offsets, /*causal=*/true));
    if (backward) o.sum().backward();
  }
  count_tokens(state, tokens);
}
BENCHMARK(attention)
    ->ArgNames({"T", "torch", "backward"})
    ->ArgsProduct({{128, 512, 1024, 4096}, {0, 1}, {0, 1}})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

/// The limit for causal_conv1d: reading and writing the tensor once.
void copy(benchmark::State& state) {
  const Tensor x = torch::randn({state.range(1), state.range(0)});
  Tensor y = torch::empty_like(x);
  for ([[maybe_unused]] auto _ : state) y.copy_(x);
  state.SetBytesProcessed(state.iterations() * x.numel() * 8);
}
BENCHMARK(copy)
    ->ArgNames({"E", "T"})
    ->ArgsProduct({{512, 1536}, {4096, 16384}})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

/// A training step (forward and backward) of every registered mixer with its first trial options.
void mixer_step(benchmark::State& state, const std::string& kind) {
  constexpr int64_t kWidth = 240;
  const int64_t tokens = state.range(0);
  seqloom::Config table = seqloom::parse_toml(seqloom::mixers().get(kind).trials.front(), kind);
  table["kind"] = kind;
  const auto mixer = seqloom::make_mixer(kWidth, table, kind);
  const Tensor x = torch::randn({1, tokens, kWidth}).requires_grad_(true);
  for ([[maybe_unused]] auto _ : state) mixer->forward(x).sum().backward();
  count_tokens(state, tokens);
}

/// A training step on eight ragged rows of T, T/2, T/4, ... tokens, 0: padded, 1: packed; tokens/s counts real ones.
void ragged_step(benchmark::State& state, const std::string& kind) {
  constexpr int64_t kWidth = 240, kRows = 8;
  seqloom::Config table = seqloom::parse_toml(seqloom::mixers().get(kind).trials.front(), kind);
  table["kind"] = kind;
  const auto mixer = seqloom::make_mixer(kWidth, table, kind);
  std::vector<int64_t> lengths, offsets = {0};
  for (int64_t row = 0; row < kRows; ++row) {
    lengths.push_back(std::max<int64_t>(1, state.range(0) >> row));
    offsets.push_back(offsets.back() + lengths.back());
  }
  const bool packed = state.range(1) != 0;
  const Tensor x = torch::randn(packed ? std::vector<int64_t>{1, offsets.back(), kWidth}
                                       : std::vector<int64_t>{kRows, state.range(0), kWidth})
                       .requires_grad_(true);
  const Tensor values = torch::zeros({kRows, state.range(0), kWidth});  // which are never packed
  for ([[maybe_unused]] auto _ : state) {
    seqloom::Pass pass;
    pass.layout =
        packed ? seqloom::Layout::packed(torch::tensor(offsets)) : seqloom::Layout::padded(torch::tensor(lengths));
    for (const auto& name : mixer->takes()) pass.values[name] = values;
    mixer->forward(x, pass).sum().backward();
  }
  count_tokens(state, offsets.back());
}

}  // namespace

int main(int argc, char** argv) {
  for (const auto& kind : seqloom::mixers().names()) {
    benchmark::RegisterBenchmark(("mixer_step/" + kind).c_str(),
                                 [kind](benchmark::State& state) { mixer_step(state, kind); })
        ->ArgName("T")
        ->Arg(1024)
        ->Arg(4096)
        ->UseRealTime()
        ->Unit(benchmark::kMillisecond);
    benchmark::RegisterBenchmark(("ragged_step/" + kind).c_str(),
                                 [kind](benchmark::State& state) { ragged_step(state, kind); })
        ->ArgNames({"T", "packed"})
        ->ArgsProduct({{1024}, {0, 1}})
        ->UseRealTime()
        ->Unit(benchmark::kMillisecond);
  }
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
