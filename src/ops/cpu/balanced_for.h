#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace seqloom::ops::cpu {

/// Tasks one behind the other; task i costs about costs[i], at least 1.
class TaskCosts {
 public:
  explicit TaskCosts(const std::vector<int64_t>& costs) {
    for (const int64_t cost : costs) {
      starts_.push_back(total_);
      total_ += cost;
    }
  }
  int64_t total() const { return total_; }
  /// The first task that begins there or later.
  int64_t task_at(int64_t cost) const {
    return std::lower_bound(starts_.begin(), starts_.end(), cost) - starts_.begin();
  }

 private:
  std::vector<int64_t> starts_;
  int64_t total_ = 0;
};

/// Runs work(begin, end) in parallel over ranges of tasks of about the same cost, which together are all tasks. These
/// must not depend on each other; then results do not depend on the number of threads.
template <typename Work>
void balanced_for(const TaskCosts& costs, Work work) {
  at::parallel_for(0, costs.total(), 1, [&](int64_t from, int64_t to) {
    const int64_t begin = costs.task_at(from), end = costs.task_at(to);
    if (begin < end) work(begin, end);
  });
}

}  // namespace seqloom::ops::cpu
