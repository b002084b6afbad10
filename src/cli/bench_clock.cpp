#include "cli/bench_clock.h"

#include <algorithm>
#include <chrono>
#include <ctime>

#include "base/torch.h"

namespace seqloom {

double seconds_of(const std::function<void()>& work) {
  const std::clock_t cpu = std::clock();
  const auto wall = std::chrono::steady_clock::now();
  work();
  if (torch::get_num_threads() == 1) return static_cast<double>(std::clock() - cpu) / CLOCKS_PER_SEC;
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - wall).count();
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

double median_seconds(int64_t repeats, const std::function<void()>& work) {
  std::vector<double> times;
  for (int64_t i = 0; i < repeats; ++i) times.push_back(seconds_of(work));
  return median(times);
}

}  // namespace seqloom
