#include "train/schedule.h"

#include <gtest/gtest.h>

namespace seqloom {
namespace {

TEST(Schedule, WarmsUpThenFallsAsNamed) {
  EXPECT_DOUBLE_EQ(schedule_factor("cosine", 0, 100, 10, 0.1), 0.1);
  EXPECT_DOUBLE_EQ(schedule_factor("cosine", 9, 100, 10, 0.1), 1.0);
  EXPECT_DOUBLE_EQ(schedule_factor("cosine", 10, 100, 10, 0.1), 1.0);
  EXPECT_NEAR(schedule_factor("cosine", 55, 100, 10, 0.1), 0.55, 1e-12);
  EXPECT_NEAR(schedule_factor("cosine", 100, 100, 10, 0.1), 0.1, 1e-12);
  EXPECT_NEAR(schedule_factor("linear", 55, 100, 10, 0.0), 0.5, 1e-12);
  EXPECT_DOUBLE_EQ(schedule_factor("constant", 99, 100, 0, 0.1), 1.0);
}

}  // namespace
}  // namespace seqloom
