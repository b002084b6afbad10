#pragma once

#include <vector>

#include "base/torch.h"
#include "ops/cpu/varlen_attention.h"
#include "ops/cpu/varlen_attention_block.h"

namespace seqloom::ops::cpu {

/// Queries [first, last) of one head of one sequence.
struct VarlenTask {
  int64_t sequence, head, first, last, cost;
  int64_t index;  // among all tasks
};

/// A head's rows beside each other: x [N, H, d] -> [H, N, padded] float32, zeros in the padding.
torch::Tensor by_head(const torch::Tensor& x);

/// The inputs as kernels read them, and their cut into tasks.
class VarlenRows {
 public:
  VarlenRows(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v, const VarlenRule& rule);

  torch::Tensor q, k, v;  // [H, Nq, padded], [Hkv, Nk, padded] twice

  int64_t padded() const { return q.size(2); }
  int64_t sequences() const { return rule_.first_q.size(0) - 1; }
  int64_t longest() const;
  int64_t first_query(const VarlenTask& task) const { return first_q_[task.sequence]; }
  int64_t first_key(const VarlenTask& task) const { return first_k_[task.sequence]; }
  /// At most `rows` queries each; none for sequences without queries.
  std::vector<VarlenTask> tasks(int64_t rows) const;
  /// The block of a task that begins at query `first`.
  QueryBlock block(const VarlenTask& task, int64_t first) const;

 private:
  QueryBlock queries(int64_t sequence, int64_t head, int64_t first, int64_t last) const;

  VarlenRule rule_;
  torch::Tensor bias_;
  int64_t width_;
  const int64_t *first_q_, *first_k_;
};

}  // namespace seqloom::ops::cpu
