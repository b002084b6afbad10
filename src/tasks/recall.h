#pragma once

#include <cstdint>
#include <vector>

#include "base/fields.h"
#include "base/torch.h"

namespace seqloom {

struct RecallOptions {
  int64_t pairs = 16, keys = 32, values = 32, eval_rows = 256;
  std::vector<double> eval_pairs = {4, 8, 16};
  bool mixed = false, packed = false;

  void describe(Fields& f) {
    f.add("pairs", pairs, "key-value pairs of a training row").at_least(1).at_most(1 << 16);
    f.add("keys", keys, "different keys; at least as many as pairs").at_least(1).at_most(1 << 20);
    f.add("values", values, "different values").at_least(2).at_most(1 << 20);
    f.add("eval_pairs", eval_pairs, "numbers of pairs that are evaluated, each a metric accuracy@N")
        .at_least(1)
        .at_most(1 << 16);
    f.add("eval_rows", eval_rows, "rows of each evaluation").at_least(1).at_most(1 << 20);
    f.add("mixed", mixed, "train on rows of 1 .. pairs pairs instead of always pairs");
    f.add("packed", packed, "each row of a batch has its own number of pairs, 1 .. pairs; none is padded");
  }
};

/// Multi-query associative recall (Arora et al. 2023, arXiv 2312.04927): key-value pairs with distinct keys, then all
/// the keys in another order; at each of those the model must say the key's value. T = 3 x pairs.
struct RecallRows {
  torch::Tensor ids;      // [B, T] int64: keys 0 .. keys-1, values keys .. keys+values-1
  torch::Tensor targets;  // [B, T] int64: the value at queries, -100 elsewhere
};

/// Rows number first, first + 1, ...; each is a function of (seed, its number). Needs 1 <= pairs <= options.keys.
RecallRows recall_rows(int64_t rows, int64_t pairs, const RecallOptions& options, uint64_t seed, int64_t first);

/// Row first + i with pairs[i] pairs, one after the other: ids and targets are [1, N]. Needs a row.
struct PackedRecallRows {
  RecallRows rows;
  torch::Tensor offsets;  // [R + 1] int64: where each row begins, and N
};
PackedRecallRows packed_recall_rows(const std::vector<int64_t>& pairs, const RecallOptions& options, uint64_t seed,
                                    int64_t first);

}  // namespace seqloom
