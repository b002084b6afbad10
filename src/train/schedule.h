#pragma once
#include <cstdint>
#include <string>

namespace seqloom {

/// The learning rate's factor at `step` (0-based): linear warm-up over `warmup` steps, then cosine or linear from 1 to
/// `floor` at the last of `steps`, or constant 1.
double schedule_factor(const std::string& schedule, int64_t step, int64_t steps, int64_t warmup, double floor);

}  // namespace seqloom
