#pragma once

#include <cstdint>
#include <vector>

#include "base/fields.h"
#include "base/torch.h"

namespace seqloom {

struct SamplerOptions {
  double temperature = 1.0, top_p = 1.0, min_p = 0.0, repetition_penalty = 1.0;
  int64_t top_k = 0, seed = 0;

  void describe(Fields& f) {
    f.add("temperature", temperature, "0: always the likeliest token").at_least(0);
    f.add("top_k", top_k, "draw from the k likeliest tokens, 0: from all").at_least(0);
    f.add("top_p", top_p, "draw from the likeliest tokens that hold this probability").greater_than(0).at_most(1);
    f.add("min_p", min_p, "drop tokens below this part of the likeliest one's probability").at_least(0).at_most(1);
    f.add("repetition_penalty", repetition_penalty,
          "divides the positive logits of recent tokens, multiplies negative ones")
        .greater_than(0);
    f.add("seed", seed, "of the draws").at_least(0);
  }
};

/// Draws the token at `position` from logits [V]. The draw is a function of (logits, recent, options, position): a
/// stream that was saved and restored goes on as if nothing had happened. `recent` are the tokens that
/// repetition_penalty is about (Keskar et al. 2019, arXiv 1909.05858).
int64_t sample(const torch::Tensor& logits, const std::vector<int64_t>& recent, const SamplerOptions& options,
               int64_t position);

}  // namespace seqloom
