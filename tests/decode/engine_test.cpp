#include "decode/engine.h"

#include <gtest/gtest.h>

#include <future>
#include <map>

#include "decode/session.h"
#include "io/toml.h"

namespace seqloom {
namespace {

using Reason = Outcome::Reason;

constexpr int64_t kVocabulary = 48;

std::shared_ptr<Decoder> model(const std::string& layers, const std::string& options = "") {
  torch::manual_seed(2);
  const std::string table = "width = 16\n" + options + "\nlayers = " + layers;
  auto decoder = std::make_shared<Decoder>(kVocabulary, parse_toml(table, "test"), "test: model");
  decoder->eval();
  return decoder;
}

const char* const kMamba = "[{ repeat = 2, mixer = { kind = 'mamba', state = 4 } }]";
const char* const kAttention =
    "[{ mixer = { kind = 'attention', heads = 2, position = 'rope' }, channel = { kind = 'swiglu' } }, "
    "{ mixer = { kind = 'attention', heads = 4, kv_heads = 2, window = 7 }, channel = { kind = 'mlp' } }]";
const char* const kHybrid =
    "[{ conv = 3, mixer = { kind = 'mamba2', state = 4, headdim = 8 } }, { mixer = { kind = 'rwkv7', heads = 2 } }, "
    "{ mixer = { kind = 'attention', heads = 2, window = 16, position = 'rope' }, channel = { kind = 'swiglu' } }, "
    "{ mixer = { kind = 'gated_deltanet', heads = 2, head_dim = 4 } }]";

std::vector<int64_t> prompt(int64_t length, int64_t salt) {
  std::vector<int64_t> tokens;
  for (int64_t i = 0; i < length; ++i) tokens.push_back((salt * 31 + i * i + 7 * i) % kVocabulary);
  return tokens;
}

SamplerOptions sampler(int64_t seed) {
  SamplerOptions options;
  options.seed = seed;
  if (seed % 3 == 0) options.temperature = 0;
  if (seed % 3 == 1) options.top_k = 9;
  if (seed % 3 == 2) options.repetition_penalty = 1.3;
  return options;
}

/// What a session alone makes of it.
std::vector<int64_t> alone(const std::shared_ptr<Decoder>& decoder, const std::vector<int64_t>& tokens, int64_t count,
                           const SamplerOptions& options) {
  Session session(decoder, "m");
  session.read(tokens);
  std::vector<int64_t> made;
  for (int64_t i = 0; i < count; ++i) made.push_back(session.next(options));
  return made;
}

/// A request whose tokens and outcome can be waited for.
struct Asked {
  std::vector<int64_t> tokens;
  std::promise<Outcome> promise;
  std::future<Outcome> outcome = promise.get_future();
  int ends = 0;

  Request request(std::vector<int64_t> text, int64_t count, const SamplerOptions& options) {
    Request request;
    request.prompt = std::move(text);
    request.max_tokens = count;
    request.sampler = options;
    request.on_token = [this](int64_t token) {
      tokens.push_back(token);
      return true;
    };
    request.on_end = [this](Outcome end) {
      if (++ends == 1) promise.set_value(std::move(end));
    };
    return request;
  }
  Outcome end() {
    EXPECT_EQ(outcome.wait_for(std::chrono::minutes(5)), std::future_status::ready) << "the request never ended";
    return outcome.get();
  }
};

EngineOptions options(int64_t streams, int64_t bytes = int64_t{1} << 32) {
  EngineOptions options;
  options.max_streams = streams;
  options.max_bytes = bytes;
  return options;
}

TEST(Engine, EveryStreamIsThatOfASessionAlone) {
  for (const char* layers : {kMamba, kAttention, kHybrid}) {
    SCOPED_TRACE(layers);
    const auto decoder = model(layers);
    constexpr int64_t kStreams = 23;  // more than run at once, with prompts of all lengths, one longer than a piece
    std::vector<Asked> asked(kStreams);
    std::vector<std::vector<int64_t>> texts;
    {
      Engine engine(decoder, options(9));
      for (int64_t i = 0; i < kStreams; ++i) {
        texts.push_back(prompt(i == 4 ? 2 * Stream::kPiece + 5 : 1 + (i * 5) % 19, i));
        engine.submit(asked[static_cast<size_t>(i)].request(texts.back(), 3 + i % 14, sampler(i)));
      }
      engine.drain();
      EXPECT_EQ(engine.counts().finished, kStreams);
      EXPECT_EQ(engine.counts().running, 0);
      EXPECT_THROW(engine.submit(Asked().request({1}, 1, {})), Busy);
    }
    for (int64_t i = 0; i < kStreams; ++i) {
      Asked& one = asked[static_cast<size_t>(i)];
      const Outcome outcome = one.end();
      EXPECT_EQ(outcome.reason, Reason::kLength) << outcome.message;
      EXPECT_EQ(outcome.tokens, 3 + i % 14);
      EXPECT_EQ(one.ends, 1);
      EXPECT_EQ(one.tokens, alone(decoder, texts[static_cast<size_t>(i)], 3 + i % 14, sampler(i))) << i;
    }
  }
}

TEST(Engine, AThousandStreamsOfASmallMambaWithinAStatedMemory) {
  const auto decoder = model(kMamba);
  constexpr int64_t kStreams = 1000, kTokens = 24;
  const int64_t bound = kStreams * bytes_for(*decoder, 0);
  EXPECT_LT(bound, int64_t{4} << 20) << "1,000 streams of this model fit into 4 MiB";
  std::vector<Asked> asked(kStreams);
  int64_t most = 0, together = 0;
  Engine engine(decoder, options(kStreams, bound));
  for (int64_t i = 0; i < kStreams; ++i) {
    Request request = asked[static_cast<size_t>(i)].request(prompt(1 + i % 5, i), kTokens, sampler(i));
    request.on_token = [&, kept = request.on_token](int64_t token) {
      const EngineCounts counts = engine.counts();
      most = std::max(most, counts.bytes);
      together = std::max(together, counts.running);
      return kept(token);
    };
    engine.submit(std::move(request));
  }
  engine.drain();
  EXPECT_LE(most, bound);
  EXPECT_GT(together, kStreams / 2);
  for (int64_t i = 0; i < kStreams; ++i) {
    Asked& one = asked[static_cast<size_t>(i)];
    EXPECT_EQ(one.end().reason, Reason::kLength);
    ASSERT_EQ(one.tokens, alone(decoder, prompt(1 + i % 5, i), kTokens, sampler(i))) << i;
  }
}

TEST(Engine, AStreamIsKeptForkedAndGoneOnWith) {
  const auto decoder = model(kHybrid);
  const auto text = prompt(11, 1);
  const auto whole = alone(decoder, text, 30, sampler(1));
  Engine engine(decoder, options(4));
  Asked first, second, third;
  Request request = first.request(text, 12, sampler(1));
  request.keep_stream = true;
  engine.submit(std::move(request));
  const Outcome outcome = first.end();
  ASSERT_NE(outcome.stream, nullptr);
  EXPECT_EQ(outcome.stream->tokens(), 11 + 12);
  for (Asked* asked : {&second, &third}) {
    Request more = asked->request({}, 18, sampler(1));
    more.from = outcome.stream;
    engine.submit(std::move(more));
  }
  EXPECT_EQ(second.end().stream, nullptr);
  EXPECT_EQ(second.tokens, std::vector<int64_t>(whole.begin() + 12, whole.end()));
  third.end();
  EXPECT_EQ(third.tokens, second.tokens) << "going on from a stream changed it";
}

TEST(Engine, CancelAndStopEndOneStreamInTheMiddle) {
  const auto decoder = model(kHybrid);
  Engine engine(decoder, options(8));
  Asked endless, stopped, steady;
  int64_t ticket = 0;
  std::atomic<bool> told = false;
  Request request = endless.request(prompt(3, 1), 1 << 20, sampler(1));
  request.on_token = [&](int64_t) {
    if (told) engine.cancel(ticket);
    return true;
  };
  ticket = engine.submit(std::move(request));
  told = true;
  Request halting = stopped.request(prompt(4, 2), 100, sampler(2));
  halting.on_token = [&](int64_t token) {
    stopped.tokens.push_back(token);
    return stopped.tokens.size() < 5;
  };
  engine.submit(std::move(halting));
  engine.submit(steady.request(prompt(5, 3), 40, sampler(3)));
  EXPECT_EQ(endless.end().reason, Reason::kCancelled);
  EXPECT_EQ(stopped.end().reason, Reason::kStopped);
  EXPECT_EQ(stopped.tokens, alone(decoder, prompt(4, 2), 5, sampler(2)));
  steady.end();
  EXPECT_EQ(steady.tokens, alone(decoder, prompt(5, 3), 40, sampler(3)));
  engine.cancel(12345);  // nobody's
}

TEST(Engine, AFailureEndsItsOwnRequestOnly) {
  const auto decoder = model(kMamba);
  Engine engine(decoder, options(8));
  Asked throwing, damaged, steady;
  Stream bad = empty_stream(*decoder);
  read(*decoder, bad, {1, 2, 3});
  bad.logits.fill_(NAN);
  Request request = throwing.request(prompt(3, 1), 50, sampler(1));
  request.on_token = [](int64_t) -> bool { throw std::runtime_error("the client is gone"); };
  engine.submit(std::move(request));
  Request broken = damaged.request({}, 50, sampler(1));
  broken.from = std::make_shared<Stream>(std::move(bad));
  engine.submit(std::move(broken));
  engine.submit(steady.request(prompt(5, 3), 40, sampler(3)));
  const Outcome first = throwing.end(), second = damaged.end();
  EXPECT_EQ(first.reason, Reason::kFailed);
  EXPECT_EQ(first.message, "the client is gone");
  EXPECT_EQ(second.reason, Reason::kFailed);
  EXPECT_NE(second.message.find("not finite"), std::string::npos) << second.message;
  EXPECT_EQ(steady.end().reason, Reason::kLength);
  EXPECT_EQ(steady.tokens, alone(decoder, prompt(5, 3), 40, sampler(3)));
  EXPECT_EQ(engine.counts().failed, 2);
}

TEST(Engine, RefusesWhatIsWrongOrTooMuch) {
  const auto decoder = model(kAttention, "position = 'learned'\nmax_length = 20");
  Asked full, wrong;
  {
    EngineOptions narrow = options(1);
    narrow.max_queue = 0;
    Engine engine(decoder, narrow);
    EXPECT_THROW(engine.submit(wrong.request({}, 4, {})), UsageError);
    EXPECT_THROW(engine.submit(wrong.request({kVocabulary}, 4, {})), UsageError);
    EXPECT_THROW(engine.submit(wrong.request(prompt(21, 0), 4, {})), UsageError);
    EXPECT_THROW(engine.submit(wrong.request({1}, -1, {})), UsageError);
    std::promise<void> go;
    Request blocking = full.request(prompt(5, 1), 100, sampler(1));
    blocking.on_token = [&, wait = go.get_future().share()](int64_t) {
      wait.wait();
      return true;
    };
    engine.submit(std::move(blocking));
    EXPECT_THROW(
        {
          for (int i = 0; i < 3; ++i) engine.submit(Asked().request({1}, 1, {}));
        },
        Busy);
    EXPECT_GE(engine.counts().refused, 1);
    go.set_value();
    const Outcome outcome = full.end();
    EXPECT_EQ(outcome.reason, Reason::kLength) << outcome.message;
    EXPECT_EQ(outcome.tokens, 15) << "the model reads 20 tokens, of which 5 are the prompt";
  }
  EXPECT_EQ(wrong.ends, 0);
}

TEST(Engine, AStreamThatOutgrowsTheBoundFailsAndSaysSo) {
  const auto decoder = model("[{ mixer = { kind = 'attention', heads = 2, position = 'rope' } }]");
  Asked large, small;
  Engine engine(decoder, options(8, bytes_for(*decoder, 40)));
  engine.submit(large.request(prompt(10, 1), 500, sampler(1)));
  engine.submit(small.request(prompt(10, 2), 8, sampler(2)));
  const Outcome outcome = large.end();
  EXPECT_EQ(outcome.reason, Reason::kFailed);
  EXPECT_NE(outcome.message.find("max_bytes"), std::string::npos) << outcome.message;
  EXPECT_EQ(small.end().reason, Reason::kLength) << "it waited until there was room";
}

TEST(Engine, DestroyedItCancelsEverythingOnce) {
  std::vector<Asked> asked(6);
  {
    Engine engine(model(kMamba), options(2));
    for (Asked& one : asked) engine.submit(one.request(prompt(3, 1), 1 << 20, sampler(1)));
  }
  for (Asked& one : asked) {
    EXPECT_EQ(one.end().reason, Reason::kCancelled);
    EXPECT_EQ(one.ends, 1);
  }
}

}  // namespace
}  // namespace seqloom
