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

TEST(WindowMixers, LongLagsByTransformsEqualTheSum) {
  const torch::NoGradGuard no_grad;
  for (const char* causal : {"true", "false"}) {
    torch::manual_seed(5);
    const Tensor x = torch::randn({2, 90, kWidth});
    const auto mixer = make_mixer(
        kWidth, {{"kind", "extractor_he"}, {"context_length", 75}, {"causal", std::string(causal) == "true"}}, "test");
    const auto form = mixer->matrix(x);
    expect_near(mixer->forward(x), form->finish(torch::matmul(form->matrix, form->values)), 1e-5, causal);
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
