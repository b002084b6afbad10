#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

namespace seqloom::ops::cpu {

/// Runs tasks of unequal cost: each thread takes the costliest one that is left. make_worker() is called once in every
/// thread and returns what runs a task there, so that it can hold scratch memory. Tasks must not depend on each other;
/// then results do not depend on the number of threads.
template <typename Task, typename MakeWorker>
void run_tasks(std::vector<Task> tasks, MakeWorker make_worker) {
  std::stable_sort(tasks.begin(), tasks.end(), [](const Task& a, const Task& b) { return a.cost > b.cost; });
  const auto count = static_cast<int64_t>(tasks.size());
  std::atomic<int64_t> next = 0;
  at::parallel_for(0, std::min<int64_t>(at::get_num_threads(), count), 1, [&](int64_t begin, int64_t end) {
    auto run = make_worker();
    for (int64_t i = next++; i < count; i = next++) run(tasks[i]);
  });
}

}  // namespace seqloom::ops::cpu
