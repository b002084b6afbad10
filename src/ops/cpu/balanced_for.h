#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace seqloom::ops::cpu {

/// Runs work(begin, end) in parallel over ranges of tasks which together are all of them; task i costs about costs[i],
/// at least 1, and the ranges about the same. Tasks must not depend on each other; then results do not depend on the
/// number of threads.
template <typename Work>
void balanced_for(const std::vector<int64_t>& costs, Work work) {
  std::vector<int64_t> starts;
  int64_t total = 0;
  for (const int64_t cost : costs) {
    starts.push_back(total);
    total += cost;
  }
  at::parallel_for(0, total, 1, [&](int64_t from, int64_t to) {
    const auto task_at = [&](int64_t cost) {
      return static_cast<int64_t>(std::lower_bound(starts.begin(), starts.end(), cost) - starts.begin());
    };
    if (task_at(from) < task_at(to)) work(task_at(from), task_at(to));
  });
}

}  // namespace seqloom::ops::cpu
