#pragma once

#include <cstdint>

#include "base/fields.h"
#include "base/torch.h"

namespace seqloom {

struct OnePassOptions {
  int64_t pairs = 64, width = 16, window = 1, degree = 1, judged = 8, eval_rows = 64;

  void describe(Fields& f) {
    f.add("pairs", pairs, "key-value pairs of a row").at_least(1).at_most(1 << 16);
    f.add("width", width, "width of keys and values").at_least(1).at_most(256);
    f.add("window", window, "pairs that each step of the memory fits (Omega rule); 1: the latest").at_least(1);
    f.add("degree", degree, "keys become all their monomials up to this degree; 1: they stay").at_least(1).at_most(4);
    f.add("judged", judged, "the error is that of the last so many pairs").at_least(1);
    f.add("eval_rows", eval_rows, "rows of each evaluation").at_least(1).at_most(1 << 16);
  }
};

/// Pairs of unit keys and random values, [B, N, width] each; row first, first + 1, ... is a function of (seed, its
/// number).
struct PairRows {
  torch::Tensor keys, values;
};
PairRows pair_rows(int64_t rows, const OnePassOptions& options, uint64_t seed, int64_t first);

/// Of values [B, N, V] given keys [B, N, K], what the best linear memory leaves: the mean of |M k - v|^2 over that of
/// |v|^2, where M minimises it in each row.
double least_residual(const torch::Tensor& keys, const torch::Tensor& values);

}  // namespace seqloom
