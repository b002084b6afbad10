#include "memory/memory.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "support/process.h"

namespace seqloom {
namespace {

using torch::Tensor;

TEST(Append, KeepsTheLastEntriesInOrderWhateverThePieces) {
  const torch::NoGradGuard no_grad;
  for (const int64_t keep : {-1, 1, 5, 16}) {
    Tensor cache = torch::zeros({2, 3, 0, 4}), all = cache;
    for (const int64_t size : {1, 1, 3, 7, 1, 20, 1, 1, 1, 40, 2}) {
      const Tensor fresh = torch::randn({2, 3, size, 4});
      all = torch::cat({all, fresh}, 2);
      cache = append(cache, fresh, 2, keep);
      const int64_t stay = keep < 0 ? all.size(2) : std::min(keep, all.size(2));
      ASSERT_TRUE(cache.equal(all.narrow(2, all.size(2) - stay, stay))) << "keep " << keep;
    }
  }
}

TEST(Append, GrowsInPlaceSoThatATokenCostsConstantTime) {
  const torch::NoGradGuard no_grad;
  Tensor cache = torch::zeros({1, 1, 0, 2});
  int moves = 0;
  const void* before = nullptr;
  for (int i = 0; i < 1000; ++i) {
    cache = append(cache, torch::full({1, 1, 1, 2}, i), 2, -1);
    moves += cache.storage().data() != before;
    before = cache.storage().data();
  }
  EXPECT_LE(moves, 8);
  EXPECT_EQ(cache[0][0][999][0].item<int>(), 999);
}

TEST(Append, KeepsTheGraphWhereOneIsAsked) {
  const Tensor cache = torch::randn({1, 2}).requires_grad_(true), fresh = torch::randn({1, 3}).requires_grad_(true);
  append(cache, fresh, 1, 4).sum().backward();
  EXPECT_TRUE(cache.grad().equal(torch::tensor({{0.0f, 1.0f}})));
  EXPECT_TRUE(fresh.grad().equal(torch::ones({1, 3})));
}

Memory example() {
  Memory memory;
  memory.tokens = 7;
  memory["S"] = torch::randn({2, 3});
  memory.child("inner").tokens = 5;
  memory.child("inner")["k"] = torch::randn({2, 4, 6});
  return memory;
}

Memory empty_example() {
  Memory memory;
  memory["S"] = torch::zeros({2, 3});
  memory.child("inner")["k"] = torch::zeros({2, 0, 6});  // grows
  return memory;
}

TEST(MemoryTree, ClonesSelectsAndMeasures) {
  Memory memory = example();
  Memory copy = memory.clone();
  copy["S"].zero_();
  EXPECT_GT(memory["S"].abs().sum().item<float>(), 0) << "a clone shares nothing";
  EXPECT_EQ(memory.bytes(), (6 + 48) * 4);
  const Memory rows = memory.select_rows(torch::tensor({1, 1, 0}));
  EXPECT_EQ(rows.tokens, 7);
  EXPECT_TRUE(rows.at("S")[0].equal(memory["S"][1]));
  EXPECT_EQ(rows.child("inner").at("k").size(0), 3);
  EXPECT_EQ(memory.flatten().count("inner.k"), 1U);
  EXPECT_THROW(rows.at("none"), Error);
  EXPECT_THROW(rows.child("none"), Error);
}

class MemoryFile : public InTemporaryFolder {};

TEST_F(MemoryFile, ComesBackBitByBit) {
  const Memory memory = example();
  save_memory(path("m"), memory, {{"model", "x"}});
  const Memory loaded = load_memory(path("m"), empty_example());
  EXPECT_EQ(loaded.tokens, 7);
  EXPECT_EQ(loaded.child("inner").tokens, 5);
  for (const auto& [name, tensor] : memory.flatten()) EXPECT_TRUE(loaded.flatten().at(name).equal(tensor)) << name;
}

TEST_F(MemoryFile, OtherStructuresAreRefused) {
  const auto refused = [&](Memory memory, const char* part) {
    save_memory(path("m"), memory, {});
    try {
      load_memory(path("m"), empty_example());
      ADD_FAILURE() << "accepted; expected an error about " << part;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  };
  Memory wrong_shape = example();
  wrong_shape["S"] = torch::zeros({2, 4});
  refused(std::move(wrong_shape), "'S' is");
  Memory wrong_type = example();
  wrong_type["S"] = torch::zeros({2, 3}, torch::kFloat64);
  refused(std::move(wrong_type), "'S' is");
  Memory extra = example();
  extra["more"] = torch::zeros({2});
  refused(std::move(extra), "'more' does not belong");
  Memory missing;
  missing["S"] = torch::zeros({2, 3});
  refused(std::move(missing), "inner");
  save_safetensors(path("m"), {{"S", torch::zeros({2, 3})}}, {});
  EXPECT_THROW(load_memory(path("m"), empty_example()), Error);
}

}  // namespace
}  // namespace seqloom
