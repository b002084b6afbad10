#include "decode/session.h"

#include <gtest/gtest.h>

#include <array>
#include <set>

#include "base/error.h"
#include "decode/stop_strings.h"
#include "io/toml.h"
#include "support/compare.h"
#include "support/process.h"

namespace seqloom {
namespace {

std::shared_ptr<Decoder> model(const std::string& layers) {
  torch::manual_seed(1);
  auto decoder = std::make_shared<Decoder>(64, parse_toml("width = 16\nlayers = " + layers, "test"), "test: model");
  decoder->eval();
  return decoder;
}

const char* const kRecurrent =
    "[{ mixer = { kind = 'mamba', state = 4 } }, { mixer = { kind = 'gated_deltanet', heads = 2, head_dim = 4 } }, "
    "{ mixer = { kind = 'attention', heads = 2, window = 16, position = 'rope' }, channel = { kind = 'swiglu' } }]";

std::vector<int64_t> tokens(int64_t count) {
  std::vector<int64_t> ids;
  for (int64_t i = 0; i < count; ++i) ids.push_back((i * 37 + i * i) % 64);
  return ids;
}

class SessionTest : public InTemporaryFolder {};

TEST_F(SessionTest, StreamingEqualsTheTrainingForm) {
  const auto decoder = model(kRecurrent);
  const auto ids = tokens(600);
  Session session(decoder, "m");
  session.read({ids.begin(), ids.begin() + 550});
  for (size_t i = 550; i < ids.size(); ++i) session.read({ids[i]});
  const torch::NoGradGuard no_grad;
  Pass pass;
  const Tensor whole = decoder->logits(decoder->hidden(torch::tensor(ids).unsqueeze(0), pass));
  expect_near(session.logits(), whole[0][599], 1e-4, "logits");
}

TEST_F(SessionTest, ForksAreIndependent) {
  Session session(model(kRecurrent), "m");
  session.read(tokens(50));
  Session fork = session.fork(), same = session.fork();
  SamplerOptions greedy;
  greedy.temperature = 0;
  fork.read(tokens(30));
  std::vector<int64_t> from_session, from_same;
  for (int i = 0; i < 20; ++i) from_session.push_back(session.next(greedy));
  for (int i = 0; i < 20; ++i) from_same.push_back(same.next(greedy));
  EXPECT_EQ(from_session, from_same) << "reading into one fork changed another";
  EXPECT_EQ(fork.tokens(), 80);
}

TEST_F(SessionTest, SaveAndLoadAreBitExact) {
  const auto decoder = model(kRecurrent);
  Session session(decoder, "m"), restored(decoder, "m");
  session.read(tokens(77));
  session.save(path("state.safetensors"));
  restored.load(path("state.safetensors"));
  EXPECT_TRUE(restored.logits().equal(session.logits()));
  session.read(tokens(33));
  restored.read(tokens(33));
  EXPECT_TRUE(restored.logits().equal(session.logits()));
}

TEST_F(SessionTest, ARecurrentModelStreams200000TokensInConstantMemory) {
  Session session(
      model("[{ mixer = { kind = 'mamba', state = 4 } }, { mixer = { kind = 'attention', heads = 2, window = 16 } }]"),
      "m");
  const auto piece = tokens(2000);
  session.read(piece);
  const int64_t after_2000 = session.bytes();
  for (int i = 1; i < 100; ++i) session.read(piece);
  EXPECT_EQ(session.tokens(), 200000);
  EXPECT_EQ(session.bytes(), after_2000);
  EXPECT_LT(session.bytes(), 256 * 1024);
}

TEST_F(SessionTest, DamagedAndForeignStatesAreRefused) {
  const auto decoder = model(kRecurrent);
  Session session(decoder, "m");
  EXPECT_THROW(session.save(path("s")), UsageError);
  EXPECT_THROW(session.next({}), UsageError);
  session.read(tokens(9));
  session.save(path("s"));
  const std::string good = read_text(path("s"));
  Session other(decoder, "another");
  EXPECT_THROW(other.load(path("s")), Error);
  Session narrow(model("[{ mixer = { kind = 'mamba', state = 2 } }]"), "m");
  EXPECT_THROW(narrow.load(path("s")), Error);
  write_text(path("cut"), good.substr(0, good.size() - 5));
  EXPECT_THROW(session.load(path("cut")), Error);
  write_text(path("junk"), "junk");
  EXPECT_THROW(session.load(path("junk")), Error);
}

TEST(Sampler, FiltersAsItsOptionsSay) {
  const Tensor logits = torch::tensor({1.0, 3.0, 2.0, -1.0, 0.0});
  const auto drawn = [&](const SamplerOptions& options, const std::vector<int64_t>& recent = {}) {
    std::set<int64_t> seen;
    for (int64_t position = 0; position < 400; ++position) seen.insert(sample(logits, recent, options, position));
    return seen;
  };
  SamplerOptions options;
  EXPECT_EQ(drawn(options).size(), 5U);
  options.temperature = 0;
  EXPECT_EQ(drawn(options), std::set<int64_t>{1});
  EXPECT_EQ(drawn({.temperature = 0, .repetition_penalty = 10}, {1}), std::set<int64_t>{2});
  EXPECT_EQ(drawn({.top_k = 2}), (std::set<int64_t>{1, 2}));
  EXPECT_EQ(drawn({.top_p = 0.5}), std::set<int64_t>{1});
  EXPECT_EQ(drawn({.min_p = 0.3}), (std::set<int64_t>{1, 2}));
  EXPECT_THROW(sample(torch::full({2}, NAN), {}, {}, 0), Error);
}

TEST(Sampler, DrawsFollowTheProbabilities) {
  const Tensor logits = torch::tensor({0.7, 0.2, 0.1}).log();
  std::array<int, 3> counts{};
  for (int64_t position = 0; position < 20000; ++position)
    ++counts[static_cast<size_t>(sample(logits, {}, {.seed = 3}, position))];
  EXPECT_NEAR(counts[0] / 20000.0, 0.7, 0.015);
  EXPECT_NEAR(counts[1] / 20000.0, 0.2, 0.015);
}

TEST(StopStrings, AreFoundAcrossPieces) {
  StopStrings stops({"END", "\n\n"});
  EXPECT_EQ(stops.push("abcE"), "abc");
  EXPECT_EQ(stops.push("N"), "");
  EXPECT_EQ(stops.push("xE"), "ENx");
  EXPECT_EQ(stops.push("ND and more"), "");
  EXPECT_TRUE(stops.found());
  EXPECT_EQ(stops.push("never shown"), "");
  StopStrings unused({"END"});
  EXPECT_EQ(unused.push("tailEN"), "tail");
  EXPECT_EQ(unused.finish(), "EN");
  EXPECT_THROW(StopStrings({""}), UsageError);
}

}  // namespace
}  // namespace seqloom
