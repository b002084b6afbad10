// States at rest: whole or not there, within bounds, the same after a restart.
#include "serve/state_store.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "io/toml.h"
#include "support/process.h"

namespace seqloom {
namespace {

std::shared_ptr<Decoder> model(int seed = 1) {
  torch::manual_seed(seed);
  const char* const kLayers = "width = 8\nlayers = [{ mixer = { kind = 'mamba', state = 2 } }]";
  auto decoder = std::make_shared<Decoder>(16, parse_toml(kLayers, "test"), "test: model");
  decoder->eval();
  return decoder;
}

Stream stream(Decoder& decoder, const std::vector<int64_t>& tokens) {
  Stream made = empty_stream(decoder);
  read(decoder, made, tokens);
  return made;
}

/// The status of the ApiError that `work` throws, 0 when it throws none.
template <typename Work>
int status_of(Work work) {
  try {
    work();
  } catch (const ApiError& error) {
    return error.status;
  }
  return 0;
}

class StateStoreTest : public InTemporaryFolder {
 protected:
  StateOptions options(int64_t max_states = 10, int64_t max_bytes = 1 << 20) const {
    return {path("states"), max_states, max_bytes};
  }
  std::shared_ptr<Decoder> decoder = model();
};

TEST_F(StateStoreTest, KeepsWhatWasAddedOverARestart) {
  std::string id, fork;
  const Stream first = stream(*decoder, {1, 2, 3});
  {
    StateStore store(options(), decoder, "m");
    id = store.add(first).id;
    fork = store.fork(id).id;
    EXPECT_NE(id, fork);
    EXPECT_EQ(store.info(id).tokens, 3);
  }
  write_text(path("states/state-00000000000000000000000000000000.safetensors"), "half");
  write_text(path("states/notes.txt"), "not ours");
  StateStore store(options(), decoder, "m");
  EXPECT_EQ(store.list().size(), 2U) << "and neither the broken file nor the foreign one";
  for (const auto& kept : {id, fork}) {
    const Stream loaded = store.load(kept);
    EXPECT_TRUE(loaded.logits.equal(first.logits));
    EXPECT_EQ(loaded.recent, first.recent);
    EXPECT_EQ(loaded.tokens(), 3);
  }
  store.remove(id);
  EXPECT_EQ(status_of([&] { store.load(id); }), 404);
  EXPECT_TRUE(store.load(fork).logits.equal(first.logits)) << "a fork is independent";
  EXPECT_TRUE(std::filesystem::exists(path("states/notes.txt")));
  EXPECT_TRUE(StateStore(options(), model(2), "another").list().empty()) << "states are one model's";
}

TEST_F(StateStoreTest, CountsStatesAndBytes) {
  const Stream one = stream(*decoder, {1});
  StateStore few(options(2), decoder, "m");
  const StateInfo first = few.add(one);
  few.add(one);
  EXPECT_EQ(status_of([&] { few.add(one); }), 409);
  EXPECT_EQ(status_of([&] { few.fork(first.id); }), 409);
  few.remove(first.id);
  EXPECT_EQ(status_of([&] { few.add(one); }), 0) << "there is room again";
  StateStore small({path("small"), 10, first.bytes + 10}, decoder, "m");
  small.add(one);
  EXPECT_EQ(status_of([&] { small.add(one); }), 409);
  EXPECT_EQ(small.count(), 1) << "what was refused is not counted";
}

TEST_F(StateStoreTest, TakesFilesOfThisModelOnly) {
  StateStore store(options(), decoder, "m");
  const std::string content = store.file(store.add(stream(*decoder, {1, 2})).id);
  EXPECT_EQ(store.add_file(content).tokens, 2);
  for (const std::string& broken : {std::string(), std::string(100, 'x'), content.substr(0, content.size() - 3)}) {
    EXPECT_EQ(status_of([&] { store.add_file(broken); }), 400);
  }
  StateStore other({path("other"), 10, 1 << 20}, decoder, "another");
  EXPECT_EQ(status_of([&] { other.add_file(content); }), 400);
  EXPECT_TRUE(std::filesystem::is_empty(path("other"))) << "nothing of a refused file is left";
  EXPECT_EQ(store.list().size(), 2U);
}

TEST_F(StateStoreTest, IdsAreNoPaths) {
  StateStore store(options(), decoder, "m");
  write_text(path("secret.safetensors"), "x");
  for (const char* id : {"", ".", "../secret", "state-", "state-../../secret"}) {
    EXPECT_EQ(status_of([&] { store.file(id); }), 404) << id;
    EXPECT_EQ(status_of([&] { store.remove(id); }), 404) << id;
  }
  EXPECT_TRUE(std::filesystem::exists(path("secret.safetensors")));
  EXPECT_EQ(status_of([&] { StateStore({}, decoder, "m").list(); }), 400) << "no folder, no states";
}

TEST_F(StateStoreTest, MayBeUsedFromManyThreads) {
  StateStore store(options(20), decoder, "m");
  const Stream one = stream(*decoder, {1});
  std::atomic<int> added = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 10; ++i) added += status_of([&] { store.add(one); }) == 0 ? 1 : 0;
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(added, 20);
  EXPECT_EQ(store.list().size(), 20U);
}

}  // namespace
}  // namespace seqloom
