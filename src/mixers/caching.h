#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/fields.h"
#include "base/torch.h"

namespace seqloom {

/// How memories are cached at the ends of segments, and how a token's reads of them are mixed (Memory Caching, Behrouz
/// et al. 2026, arXiv 2602.24281).
struct CachingOptions {
  std::string aggregate = "grm", segmentation = "constant", segment_init = "restart", context = "mean_key";
  int64_t segment = 64, top_k = 2, max_cache_mib = 4096;
  double temperature = 1;
  std::optional<int64_t> max_caches;

  void describe(Fields& f);
  bool restarts() const { return segment_init == "restart"; }
  bool has_gates() const { return aggregate != "residual" && aggregate != "mean"; }
  /// sums [.., d] of the keys of `counts` [..] tokens -> the context, their mean or sum.
  torch::Tensor pooled(const torch::Tensor& sums, const torch::Tensor& counts) const;
  /// Lengths of the stretches that `tokens` tokens fall into, the first of which begins `phase` tokens into a segment.
  std::vector<int64_t> cut(int64_t tokens, int64_t phase) const;
  /// Throws UsageError where logarithmic segments cannot be: after `read` tokens, or in rows of different lengths.
  void check_segmentation(int64_t read, bool ragged) const;
  /// Which of N caches the tokens of each of the last S segments may read, [B, S, N] bool: those before them that are
  /// not empty, with max_caches the newest. count [B, N] tokens of each; the first `before` are older than all
  /// segments.
  torch::Tensor visible(const torch::Tensor& count, int64_t before, int64_t segments) const;
  /// The first and the number of the entries that some row may still read; the newest `running` ones are not caches
  /// yet.
  std::pair<int64_t, int64_t> in_use(const torch::Tensor& count, int64_t running) const;
  /// Throws UsageError when `caches` memories of `elements` numbers each are over the budget.
  void check_budget(int64_t caches, int64_t elements) const;
};

/// The weights of N cached memories and, last, of the running one: scores [.., N + 1], seen [.., N + 1] bool (the last
/// is always seen). A softmax over the seen ones (grm, soup), over the top_k cached ones and the running one (ssc), or,
/// whatever the scores, 1 for each (residual) or an equal share (mean).
torch::Tensor memory_weights(const CachingOptions& options, const torch::Tensor& scores, const torch::Tensor& seen);

}  // namespace seqloom
