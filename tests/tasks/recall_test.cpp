// Associative recall: rows are what the definition says, functions of (seed, index), and scored as they should be.
#include "tasks/recall.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>

#include "base/error.h"
#include "train/example.h"
#include "train/task.h"

namespace seqloom {
namespace {

Config recipe(const Config& task = Config::object(), int64_t batch = 4) {
  Config config = {{"task", {{"kind", "recall"}, {"pairs", 4}, {"keys", 8}, {"values", 5}, {"eval_pairs", {2, 4}}}},
                   {"model", {{"width", 8}, {"layers", {{{"mixer", {{"kind", "linear_attention"}, {"heads", 2}}}}}}}},
                   {"train", {{"batch", batch}}}};
  config["task"]["eval_rows"] = 10;
  config["task"].update(task);
  return config;
}

TEST(Recall, EveryQueryAsksForTheValueOfItsKey) {
  RecallOptions options;
  options.keys = 20;
  options.values = 7;
  const int64_t pairs = 6;
  const RecallRows rows = recall_rows(50, pairs, options, 3, 11);
  ASSERT_EQ(rows.ids.sizes(), torch::IntArrayRef({50, 3 * pairs}));
  int64_t in_order = 0;
  for (int64_t b = 0; b < 50; ++b) {
    std::map<int64_t, int64_t> value_of;
    std::vector<int64_t> keys, queries;
    for (int64_t i = 0; i < pairs; ++i) {
      const auto key = rows.ids[b][2 * i].item<int64_t>(), value = rows.ids[b][2 * i + 1].item<int64_t>();
      EXPECT_TRUE(key >= 0 && key < 20) << key;
      EXPECT_TRUE(value >= 20 && value < 27) << value;
      EXPECT_TRUE(value_of.emplace(key, value).second) << "the keys of a row are distinct";
      EXPECT_EQ(rows.targets[b][2 * i].item<int64_t>(), -100);
      EXPECT_EQ(rows.targets[b][2 * i + 1].item<int64_t>(), -100);
      keys.push_back(key);
    }
    for (int64_t i = 0; i < pairs; ++i) {
      queries.push_back(rows.ids[b][2 * pairs + i].item<int64_t>());
      ASSERT_EQ(value_of.count(queries.back()), 1U);
      EXPECT_EQ(rows.targets[b][2 * pairs + i].item<int64_t>(), value_of[queries.back()]);
    }
    EXPECT_EQ(std::set<int64_t>(queries.begin(), queries.end()).size(), static_cast<size_t>(pairs));
    in_order += queries == keys;
  }
  EXPECT_LT(in_order, 3) << "the queries come in a random order";
}

TEST(Recall, PackedRowsAreThoseOfTheirNumbersAndTrainAsTheyWouldAlone) {
  RecallOptions options;
  options.keys = 8;
  options.values = 5;
  const std::vector<int64_t> pairs = {3, 1, 4};
  const auto [rows, offsets] = packed_recall_rows(pairs, options, 3, 11);
  ASSERT_TRUE(offsets.equal(torch::tensor({0, 9, 12, 24})));
  for (int64_t i = 0; i < 3; ++i) {
    const RecallRows alone = recall_rows(1, pairs[static_cast<size_t>(i)], options, 3, 11 + i);
    const int64_t begin = offsets[i].item<int64_t>(), size = alone.ids.size(1);
    EXPECT_TRUE(rows.ids.narrow(1, begin, size).equal(alone.ids));
    EXPECT_TRUE(rows.targets.narrow(1, begin, size).equal(alone.targets));
  }
  const auto task = make_task(recipe({{"packed", true}}, 50), "r.toml");
  EXPECT_EQ(task->tokens_per_batch(), 50 * 3 * 2);  // 1 .. 4 pairs
  const torch::Tensor loss = task->loss(2);
  EXPECT_TRUE(loss.requires_grad());
  EXPECT_TRUE(loss.equal(task->loss(2)));
  EXPECT_FALSE(loss.equal(task->loss(3)));
  EXPECT_THROW(make_task(recipe({{"packed", true}, {"mixed", true}}), "r.toml"), UsageError);
}

TEST(Recall, ARowIsAFunctionOfSeedAndNumber) {
  const RecallOptions options;
  const auto ids = [&](int64_t rows, uint64_t seed, int64_t first) {
    return recall_rows(rows, 16, options, seed, first).ids;
  };
  EXPECT_TRUE(ids(6, 1, 2).narrow(0, 3, 3).equal(ids(3, 1, 5)));
  EXPECT_FALSE(ids(1, 1, 2).equal(ids(1, 1, 3)));
  EXPECT_FALSE(ids(1, 1, 2).equal(ids(1, 2, 2)));
}

TEST(Recall, MetricsAreThoseOfFixedRowsWhateverTheBatch) {
  torch::manual_seed(0);
  const auto one = make_task(recipe(Config::object(), 3), "r.toml");
  torch::manual_seed(0);
  const auto other = make_task(recipe(Config::object(), 1000), "r.toml");
  const torch::NoGradGuard no_grad;
  const auto a = one->evaluate(), b = other->evaluate();
  ASSERT_EQ(a.size(), 4U);
  for (const char* name : {"accuracy", "accuracy@2", "accuracy@4", "loss"}) {
    ASSERT_EQ(a.count(name), 1U) << name;
    EXPECT_NEAR(a.at(name), b.at(name), 1e-6) << name;
  }
  EXPECT_NEAR(a.at("accuracy"), (a.at("accuracy@2") + a.at("accuracy@4")) / 2, 1e-12);
  one->model().named_parameters()["embedding.weight"].zero_();
  EXPECT_NEAR(one->evaluate().at("loss"), std::log(13), 1e-6) << "8 keys and 5 values, all equally likely";
}

TEST(Recall, LossIsAFunctionOfTheBatchNumber) {
  for (const bool mixed_lengths : {false, true}) {
    const auto task = make_task(recipe({{"mixed", mixed_lengths}}), "r.toml");
    const torch::NoGradGuard no_grad;
    EXPECT_EQ(task->loss(7).item<float>(), task->loss(7).item<float>());
    EXPECT_NE(task->loss(7).item<float>(), task->loss(8).item<float>());
  }
}

TEST(Recall, OffersOneRowOfTheLongestThatAreEvaluated) {
  const auto task = make_task(recipe({{"eval_pairs", {2, 5, 3}}}), "r.toml");
  const auto* example = dynamic_cast<const HasExample*>(task.get());
  ASSERT_NE(example, nullptr);
  EXPECT_EQ(example->example().sizes(), torch::IntArrayRef({1, 15}));
}

TEST(Recall, WrongRecipesNameTheKeyAndTheReason) {
  const std::vector<std::pair<Config, std::string>> wrong = {
      {{{"pairs", 9}}, "r.toml: task.pairs = 9: there are only 8 keys"},
      {{{"eval_pairs", {2, 9}}}, "r.toml: task.eval_pairs: 9: there are only 8 keys"},
      {{{"eval_pairs", {2.5}}}, "2.5 is not a whole number"},
      {{{"eval_pairs", Config::array()}}, "r.toml: task.eval_pairs is empty"},
      {{{"eval_pairs", {0}}}, "task.eval_pairs"},
      {{{"pairs", 0}}, "task.pairs"},
      {{{"pears", 3}}, "did you mean 'pairs'?"}};
  for (const auto& [change, message] : wrong) {
    try {
      make_task(recipe(change), "r.toml");
      ADD_FAILURE() << change << " was taken";
    } catch (const UsageError& error) {
      EXPECT_NE(std::string(error.what()).find(message), std::string::npos) << error.what();
    }
  }
}

}  // namespace
}  // namespace seqloom
