#include "train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace seqloom {

double schedule_factor(const std::string& schedule, int64_t step, int64_t steps, int64_t warmup, double floor) {
  if (step < warmup) return static_cast<double>(step + 1) / static_cast<double>(warmup);
  if (schedule == "constant") return 1;
  const double span = static_cast<double>(std::max<int64_t>(1, steps - warmup));
  const double done = std::clamp(static_cast<double>(step - warmup) / span, 0.0, 1.0);
  const double fall = schedule == "cosine" ? 0.5 * (1 + std::cos(std::numbers::pi * done)) : 1 - done;
  return floor + (1 - floor) * fall;
}

}  // namespace seqloom
