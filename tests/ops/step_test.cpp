// The ops of a decoding step against the ops that read whole sequences, and their kernels against their references.
#include <gtest/gtest.h>

#include "base/error.h"
#include "ops/attention_step.h"
#include "ops/causal_conv1d.h"
#include "ops/causal_conv1d_step.h"
#include "ops/gated_linear_attention.h"
#include "ops/gated_linear_attention_step.h"
#include "ops/selective_scan.h"
#include "ops/selective_scan_step.h"
#include "support/fused_op.h"

namespace seqloom {
namespace {

using torch::Tensor;
using Optional = std::optional<Tensor>;

/// States [1, ...] that kernels take: dimension `inner` dense.
std::vector<Tensor> states(int64_t count, std::vector<int64_t> shape, int64_t inner) {
  std::vector<Tensor> all;
  const auto last = static_cast<int64_t>(shape.size()) - 1;
  std::swap(shape[static_cast<size_t>(inner)], shape.back());
  for (int64_t i = 0; i < count; ++i) all.push_back(torch::randn(shape).transpose(inner, last));
  return all;
}

std::vector<Tensor> copies(const std::vector<Tensor>& tensors) {
  std::vector<Tensor> all;
  for (const Tensor& t : tensors) all.push_back(t.clone());
  return all;
}

/// Runs step(states) -> y with the kernel under every target and with the reference: the same y and the same states.
template <typename Step>
void expect_kernel_equals_reference(const std::vector<Tensor>& before, Step step, double tolerance) {
  auto want_states = copies(before);
  ops::set_fused_enabled(false);
  const Tensor want = step(want_states);
  ops::set_fused_enabled(true);
  on_every_target([&] {
    auto got_states = copies(before);
    const Tensor got = step(got_states);
    EXPECT_EQ(got.scalar_type(), want.scalar_type());
    expect_near(got, want, tolerance, "y");
    expect_all_near(got_states, want_states, tolerance, "states");
  });
}

/// Rows 1 and 2 of three have one state, so that row 2 comes behind row 1.
std::vector<Tensor> shared(const std::vector<Tensor>& two) {
  return {two[0], two[1], two[1]};
}

TEST(StepOps, ConvolutionKernelEqualsReference) {
  torch::manual_seed(1);
  for (const auto& [channels, width] : {std::pair<int64_t, int64_t>{1, 1}, {7, 4}, {100, 2}, {131, 5}}) {
    for (const auto type : {torch::kFloat32, torch::kBFloat16}) {
      const Tensor wide = torch::randn({3, channels + 5}).to(type), weight = torch::randn({channels, width});
      for (const bool silu : {false, true}) {
        const Optional bias = silu ? Optional(torch::randn({channels})) : std::nullopt;
        expect_kernel_equals_reference(
            states(2, {1, channels, width - 1}, 1),
            [&](std::vector<Tensor>& windows) {
              return ops::causal_conv1d_step(wide.narrow(1, 3, channels), weight, bias, shared(windows), silu);
            },
            type == torch::kFloat32 ? 1e-5 : 0.02);
      }
    }
  }
}

TEST(StepOps, ConvolutionStepsAreTheConvolution) {
  torch::manual_seed(2);
  const Tensor x = torch::randn({1, 6, 9}), weight = torch::randn({6, 4}), bias = torch::randn({6});
  const auto [want, last] = ops::causal_conv1d(x, weight, bias, {}, true);
  const std::vector<Tensor> window = {torch::zeros({1, 6, 3})};
  for (int64_t t = 0; t < 9; ++t) {
    expect_near(ops::causal_conv1d_step(x.select(2, t), weight, bias, window, true), want.select(2, t), 1e-5, "y");
  }
  expect_near(window[0], last, 1e-6, "window");
}

TEST(StepOps, ScanKernelEqualsReference) {
  torch::manual_seed(3);
  for (const auto& [channels, count] : {std::pair<int64_t, int64_t>{1, 1}, {16, 16}, {75, 3}, {200, 8}}) {
    const Tensor A = -torch::rand({channels, count}) * 3, u = torch::randn({3, channels}),
                 delta = 3 * torch::randn({3, channels}), both = torch::randn({3, 2 * count}),
                 z = torch::randn({3, channels}), D = torch::randn({channels}), bias = torch::randn({channels});
    for (const bool plain : {false, true}) {
      expect_kernel_equals_reference(
          states(2, {1, channels, count}, 1),
          [&](std::vector<Tensor>& h) {
            const auto maps = both.chunk(2, 1);
            if (plain) {
              return ops::selective_scan_step(u, delta.abs(), A, maps[0], maps[1], {}, {}, {}, false, shared(h));
            }
            return ops::selective_scan_step(u, delta, A, maps[0], maps[1], D, z, bias, true, shared(h));
          },
          2e-5);
    }
  }
}

TEST(StepOps, ScanStepsAreTheScan) {
  torch::manual_seed(4);
  const Tensor u = torch::randn({1, 5, 8}), delta = torch::randn({1, 5, 8}), A = -torch::rand({5, 3}),
               B = torch::randn({1, 3, 8}), C = torch::randn({1, 3, 8}), D = torch::randn({5});
  const auto [want, last] = ops::selective_scan(u, delta, A, B, C, D, {}, {}, true, {});
  const std::vector<Tensor> state = {torch::zeros({1, 5, 3})};
  for (int64_t t = 0; t < 8; ++t) {
    const Tensor y = ops::selective_scan_step(u.select(2, t), delta.select(2, t), A, B.select(2, t), C.select(2, t), D,
                                              {}, {}, true, state);
    expect_near(y, want.select(2, t), 1e-5, "y");
  }
  expect_near(state[0], last, 1e-5, "state");
}

TEST(StepOps, LinearAttentionKernelEqualsReference) {
  torch::manual_seed(5);
  for (const auto& [keys, values] : {std::pair<int64_t, int64_t>{1, 1}, {8, 16}, {5, 37}}) {
    constexpr int64_t kGroups = 2, kHeads = 6;
    const Tensor q = torch::randn({3, kGroups, keys}), k = torch::randn({3, kGroups, keys}),
                 v = torch::randn({3, kHeads, values});
    const std::vector<Optional> gates = {std::nullopt, Optional(-torch::rand({3, kHeads})),
                                         Optional(-torch::rand({3, kHeads, keys}))};
    for (const Optional& gate : gates) {
      expect_kernel_equals_reference(
          states(2, {1, kHeads, keys, values}, 3),
          [&](std::vector<Tensor>& S) { return ops::gated_linear_attention_step(q, k, v, gate, 0.7, shared(S)); },
          1e-5);
    }
  }
}

TEST(StepOps, LinearAttentionStepsAreLinearAttention) {
  torch::manual_seed(6);
  const Tensor q = torch::randn({1, 7, 2, 4}), k = torch::randn({1, 7, 2, 4}), v = torch::randn({1, 7, 2, 5}),
               g = -torch::rand({1, 7, 2, 4});
  const auto [want, last] = ops::gated_linear_attention(q, k, v, g, 0.5, {});
  const std::vector<Tensor> state = {torch::zeros({1, 2, 4, 5})};
  for (int64_t t = 0; t < 7; ++t) {
    const auto at = [t](const Tensor& x) { return x.select(1, t); };
    expect_near(ops::gated_linear_attention_step(at(q), at(k), at(v), at(g), 0.5, state), at(want), 1e-5, "o");
  }
  expect_near(state[0], last, 1e-5, "state");
}

struct AttentionTrial {
  int64_t heads, key_heads, width;
  std::optional<int64_t> window;
  int64_t pairs;  // of rope; 0: nothing turns
  bool interleaved;
};

TEST(StepOps, AttentionKernelEqualsReference) {
  torch::manual_seed(7);
  for (const AttentionTrial& t : std::vector<AttentionTrial>{
           {1, 1, 1, {}, 0, false}, {4, 2, 16, {}, 8, false}, {6, 2, 37, 5, 9, true}, {2, 2, 64, 100, 16, true}}) {
    const Tensor q = torch::randn({4, t.heads, t.width}), k = torch::randn({4, t.key_heads, t.width}),
                 v = torch::randn({4, t.key_heads, t.width});
    // entries of a cache with room behind them; the last two rows share one, one entry apart
    const std::vector<int64_t> lengths = {1, 65, 199, 200};
    std::vector<Tensor> caches;
    for (const int64_t n : {1, 65, 200}) {
      for (int i = 0; i < 2; ++i) caches.push_back(torch::randn({1, t.key_heads, n, t.width}));
    }
    const Tensor frequencies = torch::rand({t.pairs}, torch::kFloat64);
    const ops::StepRope rope{
        t.pairs > 0 ? Optional(frequencies) : std::nullopt, {0, 64, 100198, 100199}, t.interleaved};
    expect_kernel_equals_reference(
        caches,
        [&](std::vector<Tensor>& all) {
          const std::vector<Tensor> keys = {all[0], all[2], all[4], all[4]}, values = {all[1], all[3], all[5], all[5]};
          return ops::attention_step(q, k, v, keys, values, lengths, t.window, 0.3, rope);
        },
        2e-5);
  }
}

TEST(StepOps, AttentionReadsAndWritesAViewOfALargerBuffer) {
  torch::manual_seed(8);
  const Tensor buffer = torch::zeros({2, 1, 2, 9, 4}), q = torch::randn({1, 2, 4}), k = torch::randn({1, 2, 4});
  const std::vector<Tensor> keys = {buffer[0].narrow(2, 0, 3)}, values = {buffer[1].narrow(2, 0, 3)};
  ops::attention_step(q, k, q, keys, values, {3}, {}, 1, {});
  EXPECT_TRUE(buffer[0].select(2, 2).equal(k));
  EXPECT_TRUE(buffer[1].select(2, 2).equal(q));
  EXPECT_EQ(buffer.narrow(3, 3, 6).abs().max().item<double>(), 0) << "it wrote behind its entry";
}

TEST(StepOps, RefuseWrongShapes) {
  const auto zeros = [](std::vector<int64_t> shape) { return torch::zeros(shape); };
  const Tensor x = zeros({2, 6});
  const std::vector<Tensor> one = {zeros({1, 6, 3})}, two = {zeros({1, 6, 3}), zeros({1, 6, 2})};
  EXPECT_THROW(ops::causal_conv1d_step(x, zeros({6, 4}), {}, one, true), UsageError);
  EXPECT_THROW(ops::causal_conv1d_step(x, zeros({6, 4}), {}, two, true), UsageError);
  EXPECT_THROW(ops::causal_conv1d_step(x, zeros({5, 4}), {}, one, true), UsageError);
  EXPECT_THROW(ops::selective_scan_step(x, x, zeros({6, 3}), zeros({2, 3}), zeros({2, 3}), {}, {}, {}, true, one),
               UsageError);
  EXPECT_THROW(ops::selective_scan_step(x, x, zeros({6, 3}), zeros({2, 4}), zeros({2, 3}), {}, {}, {}, true, two),
               UsageError);
  EXPECT_THROW(ops::gated_linear_attention_step(zeros({1, 2, 3}), zeros({1, 2, 3}), zeros({1, 3, 3}), {}, 1, one),
               UsageError);
  const Tensor head = zeros({1, 2, 4});
  const std::vector<Tensor> cache = {zeros({1, 2, 3, 4})};
  EXPECT_THROW(ops::attention_step(head, head, head, cache, cache, {4}, {}, 1, {}), UsageError);
  EXPECT_THROW(ops::attention_step(head, head, head, cache, cache, {}, {}, 1, {}), UsageError);
  EXPECT_THROW(ops::attention_step(head, zeros({1, 3, 4}), zeros({1, 3, 4}), cache, cache, {1}, {}, 1, {}), UsageError);
  EXPECT_THROW(ops::attention_step(head, head, head, cache, cache, {1}, 0, 1, {}), UsageError);
}

}  // namespace
}  // namespace seqloom
