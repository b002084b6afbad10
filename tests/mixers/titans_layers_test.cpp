// The Titans layers beyond the laws: what they compute, told by masks over whole sequences; refused options.
#include "mixers/titans_layers.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "io/toml.h"
#include "support/compare.h"

namespace seqloom {
namespace {

constexpr int64_t kWidth = 12, kTokens = 150, kHeads = 3, kPersistent = 3;

/// Whatever it reads, it answers 1.
class Ones : public CausalMixer {
 public:
  struct Options {
    void describe(Fields&) {}
  };
  static constexpr const char* about = "answers 1";
  Ones(int64_t width, const Options&) : CausalMixer(width) {}
  Memory empty_memory(int64_t batch) const override {
    Memory memory;
    memory["nothing"] = torch::zeros({batch, 1});
    return memory;
  }

 protected:
  Tensor read(const Tensor& x, Memory&, Pass&) override { return torch::ones_like(x); }
};

std::shared_ptr<CausalMixer> make(const std::string& kind, const std::string& options) {
  mixers().add("ones", describe_mixer<Ones>());  // not at start: the laws are for real mixers
  Config table = parse_toml(options, "test");
  table["kind"] = kind;
  return std::dynamic_pointer_cast<CausalMixer>(make_mixer(kWidth, table, "test"));
}

std::shared_ptr<CausalMixer> make_layer(const std::string& kind, const std::string& memory,
                                        const std::string& attention) {
  const auto mixer =
      make(kind, "memory = { kind = " + memory + " }\npersistent = 3\nattention = { heads = 3" + attention);
  const torch::NoGradGuard no_grad;
  for (auto& parameter : mixer->named_parameters()) {
    if (parameter.key() == "persistent") parameter.value().normal_();
  }
  return mixer;
}

Tensor parameter(const Mixer& mixer, const std::string& name) {
  return *mixer.named_parameters().find(name);
}

CausalMixer& memory_of(const CausalMixer& layer) {
  return dynamic_cast<CausalMixer&>(*layer.named_children()["memory"]);
}

Tensor persistent(const Mixer& mixer) {
  return parameter(mixer, "persistent").unsqueeze(0);
}

/// The layer's attention over z [B, S, D], key by key as `seen` [S, S] bool says.
Tensor masked_attention(const Mixer& layer, const Tensor& z, const Tensor& seen) {
  const auto heads = [&](const std::string& name) {
    return torch::matmul(z, parameter(layer, "attention." + name + ".weight").t())
        .unflatten(-1, {kHeads, -1})
        .transpose(1, 2);
  };
  const Tensor q = heads("q_proj"), k = heads("k_proj"), v = heads("v_proj");
  const Tensor scores = torch::matmul(q, k.transpose(-1, -2)) / std::sqrt(static_cast<double>(kWidth / kHeads));
  const Tensor weights =
      torch::softmax(scores.masked_fill(seen.logical_not(), -std::numeric_limits<double>::infinity()), -1);
  return torch::matmul(torch::matmul(weights, v).transpose(1, 2).flatten(2),
                       parameter(layer, "attention.o_proj.weight").t());
}

/// A window over [P, x] of which everything sees P.
Tensor window_over(int64_t tokens, int64_t window) {
  const Tensor place = torch::arange(kPersistent + tokens);
  const Tensor back = place.unsqueeze(1) - place.unsqueeze(0);
  return back.ge(0).logical_and(back.lt(window).logical_or(place.lt(kPersistent)));
}

TEST(TitansLayers, MagIsAWindowOverPersistentTokensGatedByTheMemory) {
  torch::manual_seed(3);
  const torch::NoGradGuard no_grad;
  for (const int64_t window : {1, 7, 100, 400}) {
    const auto layer =
        make_layer("titans_mag", "'titans', heads = 2, chunk = 8", fmt::format(", window = {} }}", window));
    const Tensor x = torch::randn({2, kTokens, kWidth});
    const Tensor z = torch::cat({persistent(*layer).expand({2, -1, -1}), x}, 1);
    const Tensor m = memory_of(*layer).forward(z);
    const Tensor normed = m * (m.square().mean(-1, /*keepdim=*/true) + 1e-5).rsqrt();
    const Tensor o = masked_attention(*layer, z, window_over(kTokens, window)) * torch::sigmoid(normed);
    expect_near(layer->forward(x), o.narrow(1, kPersistent, kTokens), 1e-5, fmt::format("window {}", window));
  }
}

TEST(TitansLayers, MalIsAWindowOverTheMemorysAnswers) {
  torch::manual_seed(4);
  const torch::NoGradGuard no_grad;
  for (const int64_t window : {1, 7, 100, 400}) {
    const auto layer =
        make_layer("titans_mal", "'titans', heads = 2, chunk = 8", fmt::format(", window = {} }}", window));
    const Tensor x = torch::randn({2, kTokens, kWidth});
    const Tensor y = memory_of(*layer).forward(torch::cat({persistent(*layer).expand({2, -1, -1}), x}, 1));
    const Tensor o = masked_attention(*layer, y, window_over(kTokens, window));
    expect_near(layer->forward(x), o.narrow(1, kPersistent, kTokens), 1e-5, fmt::format("window {}", window));
  }
}

/// The attention of one segment x [B, n, D] over P, h and x.
Tensor segment_attention(const Mixer& layer, const Tensor& h, const Tensor& x) {
  const int64_t n = x.size(1);
  const Tensor z = torch::cat({persistent(layer).expand({x.size(0), -1, -1}), h, x}, 1);
  const Tensor before = torch::ones({n, n}).tril().to(torch::kBool);
  Tensor seen = torch::ones({kPersistent + 2 * n, kPersistent + 2 * n}).to(torch::kBool);
  for (const int64_t keys : {kPersistent, kPersistent + n}) {
    seen.narrow(0, kPersistent + n, n).narrow(1, keys, n).copy_(before);
  }
  return masked_attention(layer, z, seen).narrow(1, kPersistent + n, n);
}

TEST(TitansLayers, MacWithAMemoryThatAnswersOneIsAttentionWithinSegments) {
  torch::manual_seed(5);
  const torch::NoGradGuard no_grad;
  const auto layer = make_layer("titans_mac", "'ones'", " }\nsegment = 40");
  const Tensor x = torch::randn({2, kTokens, kWidth});
  std::vector<Tensor> outputs;
  for (const Tensor& part : x.split(40, 1)) outputs.push_back(segment_attention(*layer, torch::ones_like(part), part));
  expect_near(layer->forward(x), torch::cat(outputs, 1), 1e-5, "segments");
}

TEST(TitansLayers, MacReadsTheMemoryFromBeforeTheSegmentAndWritesWhatAttentionSays) {
  torch::manual_seed(6);
  const torch::NoGradGuard no_grad;
  const auto layer = make_layer("titans_mac", "'titans', heads = 2, chunk = 8", " }\nsegment = 20");
  CausalMixer& long_term = memory_of(*layer);
  const Tensor x = torch::randn({2, kTokens, kWidth});
  Memory memory = long_term.empty_memory(2);
  std::vector<Tensor> outputs;
  for (const Tensor& part : x.split(20, 1)) {
    Memory copy = memory.clone();
    const Tensor y = segment_attention(*layer, long_term.extend(part, copy), part);
    outputs.push_back(y * long_term.extend(y, memory));
  }
  expect_near(layer->forward(x), torch::cat(outputs, 1), 1e-5, "segments");
}

TEST(TitansLayers, TheMemoryOfAStreamStaysOfOneSize) {
  const torch::NoGradGuard no_grad;
  for (const char* kind : {"titans_mac", "titans_mag", "titans_mal"}) {
    const auto layer = make_layer(kind, "'titans', heads = 2", " }");
    Memory memory = layer->empty_memory(1);
    const int64_t empty = memory.bytes();
    for (const int64_t tokens : {1, 100, 1}) layer->extend(torch::randn({1, tokens, kWidth}), memory);
    EXPECT_LE(memory.bytes(), 2 * empty) << kind;
  }
}

TEST(TitansLayers, RefusedOptions) {
  struct Wrong {
    const char *kind, *options, *message;
  };
  const Wrong wrong[] = {{"titans_mag", "memory = { kind = 'attention', causal = false }", "attention is not causal"},
                         {"titans_mal", "memory = { kind = 'no_such_mixer' }", "there is no such mixer"},
                         {"titans_mal", "memory = { heads = 2 }", "expected a table with a kind"},
                         {"titans_mac", "memory = { kind = 'attention' }", "grows with the tokens"},
                         {"titans_mag", "attention = { window = 0 }", "attention.window = 0"},
                         {"titans_mal", "attention = { heads = 5 }", "heads = 5 does not divide"},
                         {"titans_mag", "attention = { position = 'alibi' }", "attention.position"},
                         {"titans_mac", "attention = { window = 8 }", "attention.window"},  // the segment is its window
                         {"titans_mac", "segment = 0", "segment = 0"},
                         {"titans_mag", "segment = 4", "segment"},
                         {"titans_mac", "persistent = 0", "persistent = 0"}};
  for (const Wrong& w : wrong) {
    EXPECT_NO_THROW(make(w.kind, ""));
    try {
      make(w.kind, w.options);
      ADD_FAILURE() << w.kind << " took " << w.options;
    } catch (const UsageError& error) {
      EXPECT_NE(std::string(error.what()).find(w.message), std::string::npos) << error.what();
    }
  }
}

}  // namespace
}  // namespace seqloom
