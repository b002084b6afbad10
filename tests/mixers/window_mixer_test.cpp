// Mixers that remember their last inputs: padding is not remembered and not counted, wherever it stands.
#include <gtest/gtest.h>

#include "io/toml.h"
#include "mixers/mixer.h"
#include "support/compare.h"

namespace seqloom {
namespace {

constexpr int64_t kWidth = 6;

std::shared_ptr<CausalMixer> make(const std::string& kind, const std::string& options) {
  Config table = parse_toml(options, kind);
  table["kind"] = kind;
  const auto mixer = std::dynamic_pointer_cast<CausalMixer>(make_mixer(kWidth, table, kind));
  const torch::NoGradGuard no_grad;
  for (auto& parameter : mixer->parameters()) parameter.normal_();  // biases that start at zero too
  return mixer;
}

const std::pair<const char*, const char*> kKinds[] = {{"extractor_she", "context_length = 4"},
                                                      {"extractor_he", "context_length = 5"},
                                                      {"extractor_he", "context_length = 70"},
                                                      {"extractor_me", "context_length = 3\nlength_bias = true"},
                                                      {"gam", "num_slots = 3\nkernel_size = 4"}};

TEST(WindowMixers, RaggedRowsStreamAsIfAlone) {
  const torch::NoGradGuard no_grad;
  // two chunks with padding before, between and behind the tokens
  const Tensor keep[] = {
      torch::tensor({{0, 0, 1, 1, 1, 0, 1}, {1, 0, 0, 0, 0, 0, 0}, {1, 1, 1, 1, 1, 1, 1}}).to(torch::kBool),
      torch::tensor({{0, 1, 1}, {1, 0, 1}, {0, 0, 0}}).to(torch::kBool)};
  for (const auto& [kind, options] : kKinds) {
    torch::manual_seed(5);
    const auto mixer = make(kind, options);
    Memory memory = mixer->empty_memory(3);
    std::vector<Tensor> inputs(3, torch::zeros({1, 0, kWidth})), outputs = inputs;
    for (const Tensor& kept : keep) {
      const Tensor x = torch::randn({3, kept.size(1), kWidth});
      Pass pass;
      pass.layout = Layout::masked(kept);
      const Tensor y = mixer->extend(x, memory, pass);
      for (int64_t b = 0; b < 3; ++b) {
        const Tensor at = kept[b].nonzero().squeeze(-1);
        inputs[b] = torch::cat({inputs[b], x[b].index_select(0, at).unsqueeze(0)}, 1);
        outputs[b] = torch::cat({outputs[b], y[b].index_select(0, at).unsqueeze(0)}, 1);
      }
    }
    const Tensor next = torch::randn({3, 2, kWidth}), y = mixer->extend(next, memory);
    for (int64_t b = 0; b < 3; ++b) {
      const Tensor alone = mixer->forward(torch::cat({inputs[b], next.narrow(0, b, 1)}, 1));
      expect_near(torch::cat({outputs[b], y.narrow(0, b, 1)}, 1), alone, 1e-5, kind);
    }
  }
}

/// y_t = sum_j W_j x_{t-j} of an Extractor without anything else, lag by lag; `ahead` tokens of the window are later
/// ones.
Tensor by_lag(const Tensor& x, const Tensor& taps, int64_t ahead) {
  const int64_t lags = taps.size(2), tokens = x.size(1), behind = lags - 1 - ahead;
  const Tensor inputs = torch::constant_pad_nd(x, {0, 0, behind, ahead});
  Tensor y = torch::zeros_like(x);
  for (int64_t k = 0; k < lags; ++k) {
    const Tensor shifted = inputs.narrow(1, k, tokens), tap = taps.select(2, k);  // [D, D], [D, 1] or [1, 1]
    y = y + (taps.size(1) > 1 ? torch::matmul(shifted, tap.t()) : shifted * tap.squeeze(1));
  }
  return y;
}

TEST(WindowMixers, LongLagsByTransformsEqualTheSum) {
  const torch::NoGradGuard no_grad;
  for (const char* kind : {"extractor_she", "extractor_he", "extractor_me"}) {
    for (const int64_t tokens : {2, 74, 75, 400}) {
      for (const bool causal : {true, false}) {
        const auto mixer = make_mixer(kWidth,
                                      {{"kind", kind},
                                       {"context_length", 75},
                                       {"adjust", "none"},
                                       {"length_bias", false},
                                       {"out_proj", false},
                                       {"causal", causal}},
                                      "test");
        const Tensor x = torch::randn({2, tokens, kWidth});
        expect_near(mixer->forward(x), by_lag(x, mixer->parameters()[0], causal ? 0 : 37), 1e-5, kind);
      }
    }
  }
}

TEST(WindowMixers, NothingPassesFromBeyondTheWindow) {
  const auto mixer = make("gam", "num_slots = 3\nkernel_size = 4");
  const Tensor x = torch::randn({1, 12, kWidth}).requires_grad_(true);
  const Tensor gradient = torch::autograd::grad({mixer->forward(x).select(1, 9).sum()}, {x})[0].abs().sum(-1)[0];
  EXPECT_EQ(gradient.narrow(0, 0, 6).max().item<double>(), 0);
  EXPECT_GT(gradient.narrow(0, 6, 4).min().item<double>(), 0);
  EXPECT_EQ(gradient.narrow(0, 10, 2).max().item<double>(), 0);
}

TEST(WindowMixers, AMemoryOfAnotherShapeIsRefused) {
  const auto mixer = make("extractor_he", "context_length = 5");
  Memory memory = mixer->empty_memory(2);
  memory["hist"] = torch::zeros({2, 3, kWidth});
  EXPECT_THROW(mixer->extend(torch::randn({2, 1, kWidth}), memory), UsageError);
  memory = mixer->empty_memory(2);
  memory["n"] = torch::zeros({3}, torch::kInt64);
  EXPECT_THROW(mixer->extend(torch::randn({2, 1, kWidth}), memory), UsageError);
}

}  // namespace
}  // namespace seqloom
