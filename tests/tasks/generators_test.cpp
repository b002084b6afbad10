// Generated rows are what their definitions say, and functions of (seed, number).
#include <gtest/gtest.h>

#include "base/error.h"
#include "tasks/one_pass.h"
#include "tasks/templates.h"
#include "train/task.h"

namespace seqloom {
namespace {

using torch::Tensor;

TEST(Templates, ATokenIsTheLastEightValuesAndTheClassNamesTheTemplate) {
  TemplateOptions options;
  options.noise = 0;
  options.height = 1;
  const TemplateRows rows = template_rows(200, options, 5, 0);
  ASSERT_EQ(rows.windows.sizes(), torch::IntArrayRef({200, 64, 8}));
  const Tensor series = rows.windows.select(2, 7);
  EXPECT_TRUE(rows.windows.select(2, 6).narrow(1, 1, 63).equal(series.narrow(1, 0, 63)));
  EXPECT_EQ(rows.windows[0][0].narrow(0, 0, 7).abs().sum().item<float>(), 0) << "nothing before the first value";
  const Tensor templates = torch::tensor({{1, 1, 1, 1, -1, -1, -1, -1},
                                          {1, -1, 1, -1, 1, -1, 1, -1},
                                          {1, 1, -1, -1, 1, 1, -1, -1},
                                          {-1, 0, 1, 2, 2, 1, 0, -1}})
                               .to(torch::kFloat32);
  // without noise the best match is perfect: the squared distance of some window to its class's template is 0
  const Tensor distance = (rows.windows.unsqueeze(2) - templates).square().sum(-1).amin(1);  // [B, 4]
  EXPECT_TRUE(distance.argmin(1).equal(rows.classes));
  EXPECT_EQ(distance.amin().item<float>(), 0);
  EXPECT_EQ(std::get<0>(torch::_unique(rows.classes)).size(0), 4);
}

TEST(Templates, NoiseHasItsDeviationAndARowDependsOnItsNumberAlone) {
  TemplateOptions options;
  options.height = 1e-6;
  const Tensor series = template_rows(500, options, 5, 0).windows.select(2, 7);
  EXPECT_NEAR(series.std().item<double>(), 0.5, 0.01);
  EXPECT_TRUE(
      template_rows(3, options, 5, 17).windows.equal(template_rows(20, options, 5, 0).windows.narrow(0, 17, 3)));
  EXPECT_FALSE(template_rows(3, options, 6, 17).windows.equal(template_rows(3, options, 5, 17).windows));
}

TEST(OnePass, TheBestMemoryIsExactUpToItsWidth) {
  OnePassOptions options;
  options.pairs = options.width = 12;
  const PairRows few = pair_rows(8, options, 1, 0);
  EXPECT_NEAR(few.keys.square().sum(-1).sub(1).abs().max().item<double>(), 0, 1e-5);
  EXPECT_LT(least_residual(few.keys, few.values), 1e-12);
  options.pairs = 48;  // of 48 random values a quarter can be fitted: expected residual 1 - 12/48
  const PairRows many = pair_rows(64, options, 1, 0);
  EXPECT_NEAR(least_residual(many.keys, many.values), 0.75, 0.02);
}

Config recipe(const Config& task) {
  Config config = {{"task", {{"kind", "one_pass"}, {"pairs", 6}, {"width", 3}, {"judged", 1}}},
                   {"train", {{"batch", 4}}}};
  config["task"].update(task);
  return config;
}

TEST(OnePass, TheLastPairsErrorIsThatOfTheDeltaRule) {
  // with rate 0.1 the last pair's error shrinks by 1 - 2 * 0.1 in its step: M' k = M k - 0.2 (M k - v)
  const auto task = make_task(recipe({{"pairs", 1}, {"width", 3}}), "test");
  EXPECT_NEAR(task->evaluate().at("error"), 0.8 * 0.8, 1e-5);
  EXPECT_TRUE(task->loss(0).requires_grad());
}

TEST(OnePass, RefusesWhatItCannotDo) {
  EXPECT_THROW(make_task(recipe({{"judged", 7}}), "test"), UsageError);
  Config with_model = recipe(Config::object());
  with_model["model"] = {{"width", 8}};
  EXPECT_THROW(make_task(with_model, "test"), UsageError);
}

}  // namespace
}  // namespace seqloom
