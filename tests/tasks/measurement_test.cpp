// Tasks that measure a mixer and train nothing.
#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "tasks/sharpness.h"
#include "train/task.h"

namespace seqloom {
namespace {

using torch::Tensor;

std::map<std::string, double> measure(const Config& task, const Config& mixer, int64_t width = 16) {
  const torch::NoGradGuard no_grad;
  const auto made = make_task({{"task", task}, {"model", {{"width", width}, {"mixer", mixer}}}}, "test");
  EXPECT_FALSE(made->trains());
  EXPECT_THROW(made->loss(0), Error);
  return made->evaluate();
}

TEST(Sharpness, EntropyIsThatOfTheNormalisedRows) {
  EXPECT_NEAR(mean_entropy(torch::full({3, 8}, 0.2)), std::log(8), 1e-6);
  EXPECT_NEAR(mean_entropy(torch::eye(4)), 0, 1e-7);
  EXPECT_NEAR(mean_entropy(torch::tensor({{3.0, 1.0}, {1.0, 0.0}})), (std::log(4) - 0.75 * std::log(3)) / 2, 1e-6);
  EXPECT_THROW(mean_entropy(torch::tensor({{1.0, -0.1}})), Error);
}

TEST(Sharpness, QueriesAndKeysReachTheMatrixAsTheyAre) {
  // A unit query's products with Gaussian keys are Gaussian of variance 1, and softmax over many of them has an entropy
  // of half the variance below the uniform one's.
  const Config mixer = {{"kind", "attention"}, {"heads", 1}, {"scale", 1.0}, {"causal", false}};
  const auto near_zero = measure({{"kind", "sharpness"}, {"keys", 2000}, {"scales", {1e-3, 1}}}, mixer);
  EXPECT_NEAR(near_zero.at("entropy@0.001"), std::log(2000), 1e-5);
  EXPECT_NEAR(near_zero.at("drop"), 0.5, 0.03);
}

TEST(Sharpness, ReluFeaturesDoNotSeeAQuerysLengthAndNalaformersDo) {
  const Config task = {{"kind", "sharpness"}};
  const auto relu = measure(task, {{"kind", "linear_attention"}, {"heads", 1}, {"feature_map", "relu"}});
  EXPECT_LT(relu.at("change"), 1e-6);
  const auto nala = measure(task, {{"kind", "nalaformer"}, {"heads", 1}, {"rope", false}, {"lepe_kernel", 0}});
  EXPECT_GT(nala.at("least_drop"), 0);
  EXPECT_NEAR(nala.at("drop"), nala.at("change"), 1e-12);
}

TEST(Sharpness, RefusesWhatItCannotMeasure) {
  const Config task = {{"kind", "sharpness"}};
  EXPECT_THROW(measure(task, {{"kind", "titans"}}), UsageError);  // no matrix
  EXPECT_THROW(measure({{"kind", "sharpness"}, {"scales", {1}}}, {{"kind", "gla"}}), UsageError);
  EXPECT_THROW(measure(task, {{"kind", "no_such_mixer"}}), UsageError);
}

TEST(StepCost, GrowsWithTheRow) {
  const Config attention = {{"kind", "attention"}, {"heads", 2}};
  const auto cost = measure({{"kind", "step_cost"}, {"lengths", {64, 1024}}, {"eval_rows", 3}}, attention);
  EXPECT_GT(cost.at("ms@64"), 0);
  EXPECT_GT(cost.at("growth"), 1);
  EXPECT_NEAR(cost.at("growth"), cost.at("ms@1024") / cost.at("ms@64"), 1e-9);
  EXPECT_THROW(measure({{"kind", "step_cost"}, {"lengths", {64}}}, attention), UsageError);
  EXPECT_THROW(measure({{"kind", "step_cost"}, {"lengths", {64, 65.5}}}, attention), UsageError);
}

}  // namespace
}  // namespace seqloom
