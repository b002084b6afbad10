// What fusing gains: every fused kernel beside its reference in tensor algebra, in one process. Compare the CPU times
// of fused:1 with fused:0, best as medians: --benchmark_repetitions=9 --benchmark_enable_random_interleaving=true
#include <benchmark/benchmark.h>

#include <functional>

#include "ops/affine_scan.h"
#include "ops/delta_rule.h"
#include "ops/fused.h"
#include "ops/prefix_softmax_scan.h"
#include "ops/rms_norm.h"
#include "ops/rotary.h"

namespace {

using namespace seqloom;
using torch::Tensor;
using Op = std::function<Tensor(const std::vector<Tensor>&)>;

/// One thread; arguments: fused or not, backward pass or not, bfloat16 or float32.
void run(benchmark::State& state, const Op& op, const std::vector<Tensor>& inputs) {
  torch::set_num_threads(1);
  ops::set_fused_enabled(state.range(0) != 0);
  const bool backward = state.range(1) != 0;
  std::vector<Tensor> leaves;
  for (const Tensor& t : inputs) {
    const auto type = state.range(2) != 0 && t.is_floating_point() && t.dim() > 2 ? torch::kBFloat16 : t.scalar_type();
    leaves.push_back(t.to(type).requires_grad_(backward));
  }
  Tensor gradient;
  for ([[maybe_unused]] auto _ : state) {
    const Tensor y = op(leaves);
    if (!backward) continue;
    if (!gradient.defined()) gradient = torch::randn_like(y);
    torch::autograd::grad({y}, leaves, {gradient});
  }
  ops::set_fused_enabled(true);
}

void arguments(benchmark::internal::Benchmark* b) {
  b->ArgNames({"fused", "backward", "bf16"})->ArgsProduct({{0, 1}, {0, 1}, {0, 1}})->Unit(benchmark::kMicrosecond);
}

void rms_norm(benchmark::State& state, const std::vector<int64_t>& shape) {
  run(state, [](const auto& in) { return ops::rms_norm(in[0], in[1], 1e-5); },
      {torch::randn(shape), torch::randn({shape.back()})});
}
BENCHMARK_CAPTURE(rms_norm, model, std::vector<int64_t>{4, 512, 512})->Apply(arguments);
BENCHMARK_CAPTURE(rms_norm, heads, std::vector<int64_t>{4, 512, 8, 64})->Apply(arguments);

void gated_rms_norm(benchmark::State& state, bool norm_before_gate) {
  run(state, [=](const auto& in) { return ops::gated_rms_norm(in[0], in[1], in[2], 1e-5, norm_before_gate); },
      {torch::randn({4, 512, 512}), torch::randn({4, 512, 512}), torch::randn({512})});
}
BENCHMARK_CAPTURE(gated_rms_norm, before_gate, true)->Apply(arguments);
BENCHMARK_CAPTURE(gated_rms_norm, after_gate, false)->Apply(arguments);

void l2_norm(benchmark::State& state) {
  run(state, [](const auto& in) { return ops::l2_norm(in[0], 1e-6); }, {torch::randn({4, 512, 8, 64})});
}
BENCHMARK(l2_norm)->Apply(arguments);

void affine_scan(benchmark::State& state) {
  run(state, [](const auto& in) { return std::get<0>(ops::affine_scan(in[0], in[1], {})); },
      {torch::rand({2, 1024, 512}), torch::randn({2, 1024, 512})});
}
BENCHMARK(affine_scan)->Apply(arguments);

void complex_affine_scan(benchmark::State& state) {
  const auto complex = [](const Tensor& t) { return torch::view_as_complex(t); };
  run(state,
      [&](const auto& in) {
        return torch::view_as_real(std::get<0>(ops::affine_scan(complex(in[0]), complex(in[1]), {})));
      },
      {torch::rand({2, 1024, 256, 2}) * 0.7, torch::randn({2, 1024, 256, 2})});
}
BENCHMARK(complex_affine_scan)
    ->ArgNames({"fused", "backward", "bf16"})
    ->ArgsProduct({{0, 1}, {0, 1}, {0}})
    ->Unit(benchmark::kMicrosecond);

void prefix_softmax(benchmark::State& state, int64_t heads, int64_t width) {
  run(state,
      [](const auto& in) { return ops::prefix_softmax_scan(in[0].squeeze(-1), in[1].transpose(1, 2), {}, {}).first; },
      {torch::randn({2, heads, 1024, 1}), torch::randn({2, 1024, heads, width})});
}
BENCHMARK_CAPTURE(prefix_softmax, narrow, 16, 32)->Apply(arguments);
BENCHMARK_CAPTURE(prefix_softmax, wide, 4, 128)->Apply(arguments);

/// B = 1, T = 1024; the widths are those of deltanet and gated_deltanet by default at D = 256.
void delta_rule(benchmark::State& state, int64_t heads, int64_t keys, int64_t values) {
  const auto rows = [=](int64_t width) { return torch::randn({1, 1024, heads, width}); };
  const Tensor beta = torch::rand({1, 1024, heads}), gate = -torch::rand({1, 1024, heads});
  run(state, [](const auto& in) { return std::get<0>(ops::delta_rule(in[0], in[1], in[2], in[3], in[4], 0.125, {})); },
      {rows(keys), ops::l2_norm(rows(keys), 1e-6), rows(values), beta, gate});
}
BENCHMARK_CAPTURE(delta_rule, narrow, 4, 64, 64)->Apply(arguments);
BENCHMARK_CAPTURE(delta_rule, wide, 6, 256, 512)->Apply(arguments);

void rotary(benchmark::State& state, bool interleaved) {
  const Tensor angles = torch::arange(512, torch::kFloat64).unsqueeze(-1) * torch::rand({32}, torch::kFloat64);
  run(state,
      [=](const auto& in) {
        return ops::rotary(in[0].transpose(1, 2), angles.cos().to(torch::kFloat32), angles.sin().to(torch::kFloat32),
                           interleaved);
      },
      {torch::randn({4, 512, 8, 64})});
}
BENCHMARK_CAPTURE(rotary, half, false)->Apply(arguments);
BENCHMARK_CAPTURE(rotary, interleaved, true)->Apply(arguments);

}  // namespace

BENCHMARK_MAIN();
