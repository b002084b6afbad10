#include "decode/speculative.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "decode/session.h"
#include "io/toml.h"

namespace seqloom {
namespace {

std::shared_ptr<Decoder> model(const std::string& layers, int64_t seed, int64_t vocabulary = 40) {
  torch::manual_seed(seed);
  auto decoder =
      std::make_shared<Decoder>(vocabulary, parse_toml("width = 16\nlayers = " + layers, "test"), "test: model");
  decoder->eval();
  return decoder;
}

const char* const kMamba = "[{ mixer = { kind = 'mamba', state = 4 } }]";
const char* const kAttention =
    "[{ mixer = { kind = 'attention', heads = 2, position = 'rope' }, channel = { kind = 'swiglu' } }]";
const char* const kHybrid =
    "[{ mixer = { kind = 'mamba2', state = 4, headdim = 8 } }, "
    "{ mixer = { kind = 'attention', heads = 2, window = 6 }, channel = { kind = 'mlp' } }, "
    "{ mixer = { kind = 'gated_deltanet', heads = 2, head_dim = 4 } }]";

const std::vector<int64_t> kPrompt = {3, 1, 4, 1, 5, 9, 2, 6, 5, 35};

std::vector<int64_t> alone(const std::shared_ptr<Decoder>& decoder, int64_t count, const SamplerOptions& options) {
  Session session(decoder, "m");
  session.read(kPrompt);
  std::vector<int64_t> tokens;
  for (int64_t i = 0; i < count; ++i) tokens.push_back(session.next(options));
  return tokens;
}

Speculation behind_prompt(const std::shared_ptr<Decoder>& large, const std::shared_ptr<Decoder>& draft,
                          int64_t draft_tokens) {
  Stream stream = empty_stream(*large);
  read(*large, stream, kPrompt);
  return {large, std::move(stream), draft, draft_tokens};
}

std::vector<SamplerOptions> samplers() {
  return {{.temperature = 0}, {.temperature = 0, .repetition_penalty = 1.4}, {.seed = 5}, {.top_p = 0.6, .seed = 8}};
}

TEST(Speculation, TheTextIsTheOneWithoutADraft) {
  for (const char* layers : {kMamba, kAttention, kHybrid}) {
    const auto large = model(layers, 1);
    for (const char* draft_layers : {kMamba, kAttention, kHybrid}) {
      for (const int64_t length : {1, 3, 7}) {
        for (const SamplerOptions& options : samplers()) {
          SCOPED_TRACE(fmt::format("{} drafted by {}, {} tokens, seed {}", layers, draft_layers, length, options.seed));
          Speculation speculation = behind_prompt(large, model(draft_layers, 2), length);
          std::vector<int64_t> tokens;
          const auto emit = [&](int64_t token) {
            tokens.push_back(token);
            return true;
          };
          // in two goes: the second begins where the first left the streams
          EXPECT_EQ(speculation.generate(25, options, emit), 25);
          EXPECT_EQ(speculation.generate(16, options, emit), 16);
          EXPECT_EQ(tokens, alone(large, 41, options));
          EXPECT_EQ(speculation.stream().tokens(), static_cast<int64_t>(kPrompt.size()) + 41);
        }
      }
    }
  }
}

TEST(Speculation, TheModelItselfAsItsDraftIsAlwaysRight) {
  for (const char* layers : {kMamba, kAttention, kHybrid}) {
    for (const SamplerOptions& options : samplers()) {
      const auto both = model(layers, 1);
      Speculation speculation = behind_prompt(both, both, 4);
      EXPECT_EQ(speculation.generate(30, options, [](int64_t) { return true; }), 30);
      EXPECT_EQ(speculation.counts().acceptance(), 1);
      EXPECT_EQ(speculation.counts().rounds, 6);
    }
  }
}

TEST(Speculation, ABadDraftIsMostlyWrongAndCostsOnlyTime) {
  const auto large = model(kMamba, 1), bad = model(kMamba, 2);
  {
    const torch::NoGradGuard no_grad;
    for (auto& parameter : bad->parameters()) parameter.mul_(-3);
  }
  Speculation speculation = behind_prompt(large, bad, 4);
  std::vector<int64_t> tokens;
  speculation.generate(40, {.seed = 1}, [&](int64_t token) {
    tokens.push_back(token);
    return true;
  });
  EXPECT_EQ(tokens, alone(large, 40, {.seed = 1}));
  EXPECT_LT(speculation.counts().acceptance(), 0.5);
}

TEST(Speculation, StoppingLeavesTheStreamBehindWhatWasShown) {
  const auto large = model(kHybrid, 1);
  for (int64_t shown = 1; shown <= 7; ++shown) {
    Speculation speculation = behind_prompt(large, large, 4);
    std::vector<int64_t> tokens;
    const int64_t made = speculation.generate(100, {.seed = 3}, [&](int64_t token) {
      tokens.push_back(token);
      return static_cast<int64_t>(tokens.size()) < shown;
    });
    EXPECT_EQ(made, shown);
    Session session(large, "m");
    session.read(kPrompt);
    for (int64_t i = 0; i < shown; ++i) session.next({.seed = 3});
    EXPECT_EQ(speculation.stream().tokens(), session.tokens());
    EXPECT_TRUE(speculation.stream().logits.equal(session.logits()));
    const TensorMap got = speculation.stream().memory.flatten(), want = session.stream().memory.flatten();
    for (const auto& [name, tensor] : want) EXPECT_TRUE(tensor.equal(got.at(name))) << name;
  }
}

TEST(Speculation, ForeignVocabulariesAreRefused) {
  EXPECT_THROW(behind_prompt(model(kMamba, 1), model(kMamba, 1, 41), 4), UsageError);
  EXPECT_THROW(behind_prompt(model(kMamba, 1), model(kMamba, 1), 0), UsageError);
}

}  // namespace
}  // namespace seqloom
