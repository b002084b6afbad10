#pragma once
#include <cstdint>
#include <functional>
#include <vector>

namespace seqloom {

/// Seconds that `work` takes: with one torch thread those of the CPU, which others on the machine disturb least, else
/// those of the wall.
double seconds_of(const std::function<void()>& work);

double median_seconds(int64_t repeats, const std::function<void()>& work);

/// The upper one of an even number.
double median(std::vector<double> values);

}  // namespace seqloom
