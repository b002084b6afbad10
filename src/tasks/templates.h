#pragma once

#include <cstdint>

#include "base/fields.h"
#include "base/torch.h"

namespace seqloom {

struct TemplateOptions {
  int64_t length = 64, eval_rows = 2000;
  double noise = 0.5, height = 1.2;

  void describe(Fields& f) {
    f.add("length", length, "values of a series T").at_least(8).at_most(1 << 20);
    f.add("noise", noise, "standard deviation of the noise").at_least(0);
    f.add("height", height, "factor on the template").greater_than(0);
    f.add("eval_rows", eval_rows, "series of each evaluation").at_least(1).at_most(1 << 20);
  }
};

/// Noise in which one of four templates of eight values hides at a random place, a stand-in for the classification of
/// time series.
struct TemplateRows {
  torch::Tensor windows;  // [B, T, 8] float32: token t is the last eight values up to t, zeros before the first
  torch::Tensor classes;  // [B] int64, which template
};

/// Series number first, first + 1, ...; each is a function of (seed, its number).
TemplateRows template_rows(int64_t rows, const TemplateOptions& options, uint64_t seed, int64_t first);

}  // namespace seqloom
