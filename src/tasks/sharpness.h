#pragma once

#include <cstdint>
#include <vector>

#include "base/fields.h"
#include "base/torch.h"

namespace seqloom {

struct SharpnessOptions {
  int64_t eval_rows = 200, keys = 64;
  std::vector<double> scales = {0.1, 0.2, 0.5, 1, 2, 4};

  void describe(Fields& f) {
    f.add("eval_rows", eval_rows, "queries, of which each is a row of the mixing matrix").at_least(1).at_most(1 << 16);
    f.add("keys", keys, "keys that they look at").at_least(1).at_most(1 << 16);
    f.add("scales", scales, "lengths of the queries, each a metric entropy@SCALE").greater_than(0).at_most(1e6);
  }
};

/// The mean entropy, in nats, of rows [.., n] of weights, each divided by its sum first. Throws Error where a weight is
/// negative, as rows with such have no entropy.
double mean_entropy(const torch::Tensor& weights);

}  // namespace seqloom
