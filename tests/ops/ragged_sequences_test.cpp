// What the ops on packed sequences have in common: work is shared out by tokens, and nobody sees by how many threads.
#include <gtest/gtest.h>

#include <vector>

#include "ops/causal_conv1d.h"
#include "ops/cpu/balanced_for.h"
#include "ops/gated_linear_attention.h"
#include "ops/selective_scan.h"

namespace seqloom {
namespace {

using torch::Tensor;

/// What `work` returns with each number of threads.
template <typename Work>
auto on_threads(std::initializer_list<int> counts, Work work) {
  const int before = torch::get_num_threads();
  std::vector<decltype(work())> all;
  for (const int count : counts) {
    torch::set_num_threads(count);
    all.push_back(work());
  }
  torch::set_num_threads(before);
  return all;
}

TEST(RaggedSequences, EvenSharesOfTheCostAreRangesOfTasksWhichAreAllOfThem) {
  const std::vector<int64_t> costs = {1000, 1, 1, 400, 1, 300, 297, 1, 1};
  const ops::cpu::TaskCosts tasks(costs);
  ASSERT_EQ(tasks.total(), 2002);
  for (const int64_t shares : {1, 2, 3, 5, 16, 5000}) {
    int64_t next = 0;
    for (int64_t i = 0; i < shares; ++i) {
      EXPECT_EQ(tasks.task_at(i * 2002 / shares), next) << "a share begins where the one before it ends";
      next = tasks.task_at((i + 1) * 2002 / shares);
    }
    EXPECT_EQ(next, static_cast<int64_t>(costs.size())) << shares;
  }
  EXPECT_EQ(tasks.task_at(1001), 2) << "half of the cost is in two tasks";
}

TEST(RaggedSequences, ResultsDoNotDependOnTheNumberOfThreads) {
  torch::manual_seed(1);
  const Tensor cu_seqlens = torch::tensor({0, 500, 500, 503, 504, 620});
  const auto leaf = [](const std::vector<int64_t>& shape) { return torch::randn(shape).requires_grad_(true); };
  const std::vector<Tensor> leaves = {leaf({1, 620, 160}), leaf({160, 4}), leaf({1, 620, 160}), leaf({1, 4, 620})};
  const Tensor A = -torch::rand({160, 4});
  const auto results = [&] {
    const Tensor x = std::get<0>(ops::causal_conv1d(leaves[0].transpose(1, 2), leaves[1], {}, {}, true, cu_seqlens));
    const Tensor y = std::get<0>(
        ops::selective_scan(x, leaves[2].transpose(1, 2), A, leaves[3], leaves[3], {}, {}, {}, true, {}, cu_seqlens));
    const Tensor heads = y.transpose(1, 2).unflatten(-1, {5, 32});
    const Tensor o = std::get<0>(ops::gated_linear_attention(heads, heads, heads, -heads.abs(), 0.1, {}, cu_seqlens));
    return torch::autograd::grad({o.square().sum()}, leaves);
  };
  const auto all = on_threads({1, 2, 3}, results);
  for (size_t run = 1; run < all.size(); ++run) {
    for (size_t i = 0; i < leaves.size(); ++i) EXPECT_TRUE(all[run][i].equal(all[0][i])) << run << ", leaf " << i;
  }
}

}  // namespace
}  // namespace seqloom
