// A few rows times a matrix, which is what decoding asks for: ours by format beside torch's own, and the reading of as
// many bytes, the limit. bytes/s count the weights as they are stored. The matrices, 256 MB in all, come from memory.
// One thread, CPU time; best as medians: --benchmark_repetitions=9 --benchmark_enable_random_interleaving=true
#include <benchmark/benchmark.h>

#include "ops/linear.h"

namespace {

using namespace seqloom;
using torch::Tensor;

constexpr int64_t kBytes = 256 << 20;

enum Format { kFloat32, kBfloat16, kInt8, kInt8Groups };

struct Weight {
  Tensor weight, scale;
  int64_t bytes() const { return static_cast<int64_t>(weight.nbytes() + (scale.defined() ? scale.nbytes() : 0)); }
};

Weight stored(const Tensor& weight, int64_t format) {
  if (format == kFloat32) return {weight, {}};
  if (format == kBfloat16) return {weight.to(torch::kBFloat16), {}};
  const auto [entries, scale] = ops::int8_weight(weight, format == kInt8 ? 0 : 64);
  return {entries, scale};
}

/// As many matrices [out, in] as fill the memory.
std::vector<Weight> many(int64_t in, int64_t out, int64_t format) {
  const Weight one = stored(torch::randn({out, in}) * 0.02, format);
  std::vector<Weight> all;
  for (int64_t bytes = 0; bytes < kBytes; bytes += one.bytes()) {
    all.push_back({one.weight.clone(), one.scale.defined() ? one.scale.clone() : one.scale});
  }
  return all;
}

/// Arguments: rows of x, format, in, out.
template <typename Product>
void run(benchmark::State& state, Product product) {
  torch::set_num_threads(1);
  const torch::NoGradGuard no_grad;
  const auto weights = many(state.range(2), state.range(3), state.range(1));
  const Tensor x = torch::randn({state.range(0), state.range(2)});
  size_t next = 0;
  for ([[maybe_unused]] auto _ : state) benchmark::DoNotOptimize(product(x, weights[next++ % weights.size()]));
  state.SetBytesProcessed(state.iterations() * weights[0].bytes());
}

void ours(benchmark::State& state) {
  run(state, [](const Tensor& x, const Weight& w) { return ops::linear(x, w.weight, w.scale); });
}
void torchs(benchmark::State& state) {
  run(state, [](const Tensor& x, const Weight& w) { return torch::linear(x.to(w.weight.scalar_type()), w.weight); });
}

const std::vector<int64_t> kRows = {1, 2, 4, 8, 16, 32};
BENCHMARK(ours)
    ->ArgNames({"rows", "format", "in", "out"})
    ->ArgsProduct({kRows, {kFloat32, kBfloat16, kInt8, kInt8Groups}, {768}, {3072}})
    ->ArgsProduct({{1, 4}, {kFloat32, kBfloat16, kInt8, kInt8Groups}, {4096}, {4096}})
    ->Unit(benchmark::kMicrosecond);
BENCHMARK(torchs)
    ->ArgNames({"rows", "format", "in", "out"})
    ->ArgsProduct({kRows, {kFloat32, kBfloat16}, {768}, {3072}})
    ->ArgsProduct({{1, 4}, {kFloat32, kBfloat16}, {4096}, {4096}})
    ->Unit(benchmark::kMicrosecond);

/// Reading: the sum of as many bytes as float32.
void reading(benchmark::State& state) {
  torch::set_num_threads(1);
  const Tensor bytes = torch::ones({kBytes / 4});
  for ([[maybe_unused]] auto _ : state) benchmark::DoNotOptimize(bytes.sum());
  state.SetBytesProcessed(state.iterations() * kBytes);
}
BENCHMARK(reading)->Unit(benchmark::kMillisecond);

}  // namespace

BENCHMARK_MAIN();
