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

/// Rows of 7 and 4 tokens, as an inner memory has them.
Memory uneven_example() {
  Memory memory = example();
  memory.child("inner").set_counts(torch::tensor({7, 4}));
  return memory;
}

TEST(MemoryCounts, PaddingIsNoToken) {
  Memory memory = example();
  EXPECT_TRUE(memory.even());
  memory.advance(2, {});
  EXPECT_EQ(memory.tokens, 9);
  memory.advance(3, torch::tensor({{true, true, true}, {false, true, false}}));
  EXPECT_FALSE(memory.even());
  EXPECT_EQ(memory.tokens, 12);
  memory.advance(1, {});
  EXPECT_TRUE(memory.counts(memory.at("S")).equal(torch::tensor({13, 11})));
  memory.advance(2, torch::tensor({{false, false}, {true, true}}));
  EXPECT_TRUE(memory.even()) << "the shorter row has caught up";
  EXPECT_EQ(memory.tokens, 13);
}

TEST(MemoryCounts, GoWithTheirRows) {
  Memory memory = uneven_example();
  EXPECT_TRUE(memory.tree_counts(memory.at("S")).equal(torch::tensor({{7, 7}, {7, 4}})));
  const auto inner_counts = [](const Memory& m, int64_t rows) { return m.child("inner").counts(torch::zeros({rows})); };
  EXPECT_TRUE(inner_counts(memory.clone(), 2).equal(torch::tensor({7, 4})));
  EXPECT_TRUE(inner_counts(memory.select_rows(torch::tensor({1, 0, 1})), 3).equal(torch::tensor({4, 7, 4})));
  const Memory shorter = memory.select_rows(torch::tensor({1}));
  EXPECT_TRUE(shorter.child("inner").even());
  EXPECT_EQ(shorter.child("inner").tokens, 4);

  const Memory other = example();  // 7 and 5 tokens
  const Memory mixed = rows_of(torch::tensor({false, true}), memory, other);
  EXPECT_TRUE(mixed.even());
  EXPECT_TRUE(inner_counts(mixed, 2).equal(torch::tensor({5, 4})));
  EXPECT_TRUE(mixed.at("S")[0].equal(other.at("S")[0]));
  EXPECT_TRUE(mixed.at("S")[1].equal(memory["S"][1]));
  memory.set_tree_counts(torch::tensor({{1, 2}, {1, 3}}));
  EXPECT_EQ(memory.tokens, 1);
  EXPECT_TRUE(inner_counts(memory, 2).equal(torch::tensor({2, 3})));
}

TEST(MemoryTree, MapsAndZips) {
  const Memory a = example(), b = example();
  const Memory sum = a.zip(b, [](const Tensor& x, const Tensor& y) { return x + y; });
  EXPECT_TRUE(sum.child("inner").at("k").equal(a.child("inner").at("k") + b.child("inner").at("k")));
  EXPECT_EQ(sum.child("inner").tokens, 5);
  EXPECT_TRUE(a.map([](const Tensor& t) { return -t; }).at("S").equal(-a.at("S")));
  EXPECT_THROW(a.zip(Memory(), [](const Tensor& x, const Tensor&) { return x; }), Error);
}

TEST(MemoryTree, SaysWhichPartGrows) {
  EXPECT_NO_THROW(check_fixed_size(example(), "of = gla", "which is bad"));
  try {
    check_fixed_size(empty_example(), "of = attention", "which is bad");
    ADD_FAILURE() << "not refused";
  } catch (const UsageError& error) {
    EXPECT_STREQ(error.what(),
                 "of = attention: its memory grows with the tokens (inner.k is [2, 0, 6] when empty), which is "
                 "bad");
  }
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

TEST_F(MemoryFile, KeepsTheCountsOfRows) {
  save_memory(path("m"), uneven_example(), {});
  const Memory loaded = load_memory(path("m"), empty_example());
  EXPECT_TRUE(loaded.even());
  EXPECT_TRUE(loaded.tree_counts(loaded.at("S")).equal(torch::tensor({{7, 7}, {7, 4}})));
}

TEST_F(MemoryFile, WrongCountsAreRefused) {
  for (const char* counts :
       {R"({"": 7})", R"({"": 7, "inner.": [1]})", R"({"": 7, "inner.": [1, 2, 3]})", R"({"": 7, "inner.": [1, -2]})",
        R"({"": 7, "inner.": [1, 2.5]})", R"({"": 7, "inner.": -1})", R"({"": "7", "inner.": 1})", "[7]", "7 7"}) {
    save_safetensors(path("m"), example().flatten(), {{"format", "seqloom-memory-1"}, {"tokens", counts}});
    EXPECT_THROW(load_memory(path("m"), empty_example()), Error) << counts;
  }
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

/// A cache of `count` entries that grew one by one, and a sum of fixed size.
Memory read_one_by_one(int64_t count, bool with_sum) {
  Memory memory;
  Memory& part = memory.child("part");
  part["cache"] = torch::zeros({1, 2, 0, 3});
  part["unused"] = torch::zeros({1, 0});
  if (with_sum) part["sum"] = torch::zeros({1, 3});
  for (int64_t t = 0; t < count; ++t) {
    const torch::Tensor entry = torch::full({1, 2, 1, 3}, t);
    part["cache"] = append(part["cache"], entry, 2);
    if (with_sum) part["sum"].add_(entry[0][0]);
    part.tokens = memory.tokens = t + 1;
  }
  return memory;
}

TEST(MemoryPlace, GoingBackUndoesWhatWasReadSince) {
  const Memory empty = read_one_by_one(0, true);
  Memory memory = read_one_by_one(5, true);
  Memory place = place_of(memory, empty);
  for (int64_t t = 0; t < 40; ++t) {  // also past the room that the cache had
    memory.child("part")["cache"] = append(memory.child("part")["cache"], torch::full({1, 2, 1, 3}, 99), 2);
    memory.child("part")["sum"].add_(99);
    memory.child("part").tokens = ++memory.tokens;
  }
  EXPECT_FALSE(cut_back(memory, place, 3)) << "a sum cannot be cut";
  EXPECT_EQ(memory.tokens, 45);
  memory = std::move(place);
  EXPECT_EQ(memory.tokens, 5);
  const Memory same = read_one_by_one(5, true);
  for (const auto& [name, tensor] : same.flatten()) EXPECT_TRUE(memory.flatten().at(name).equal(tensor)) << name;
}

TEST(MemoryPlace, CachesAreCut) {
  const Memory empty = read_one_by_one(0, false);
  Memory memory = read_one_by_one(5, false);
  const Memory place = place_of(memory, empty);
  Memory& part = memory.child("part");
  for (int64_t t = 5; t < 9; ++t) part["cache"] = append(part["cache"], torch::full({1, 2, 1, 3}, t), 2);
  part.tokens = memory.tokens = 9;
  ASSERT_TRUE(cut_back(memory, place, 2));
  EXPECT_EQ(memory.tokens, 7);
  EXPECT_EQ(memory.child("part").tokens, 7);
  EXPECT_TRUE(memory.child("part").at("cache").equal(read_one_by_one(7, false).child("part").at("cache")));
}

TEST(MemoryPlace, GrownLeavesRoomWhereTheCacheHasIt) {
  torch::Tensor cache = append(torch::zeros({1, 0, 2}), torch::ones({1, 3, 2}), 1);
  const torch::Tensor more = grown(cache, 2, 1);
  EXPECT_EQ(more.size(1), 5);
  EXPECT_EQ(more.const_data_ptr(), cache.const_data_ptr());
  EXPECT_TRUE(more.narrow(1, 0, 3).equal(cache));
  EXPECT_EQ(grown(cache, 2, 1, 4).size(1), 4) << "the last four, the new ones among them";
  EXPECT_EQ(grown(cache, 100, 1).size(1), 103);
}

}  // namespace
}  // namespace seqloom
