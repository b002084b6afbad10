#pragma once

#include <cmath>

#include "base/error.h"
#include "blocks/linear.h"

namespace seqloom {

/// The width of one of `heads` heads over `expand * width` channels. Throws UsageError when it does not divide.
inline int64_t head_width(int64_t width, double expand, int64_t heads, const char* what) {
  const auto total = static_cast<int64_t>(std::llround(static_cast<double>(width) * expand));
  if (total < heads || total % heads != 0) {
    misuse("heads = {} does not divide the {} width {} ({} x {:g}); choose another heads or width", heads, what, total,
           width, expand);
  }
  return total / heads;
}

/// [B, T, H * K] -> [B, T, H, K].
inline torch::Tensor split_heads(const torch::Tensor& x, int64_t heads) {
  return x.unflatten(-1, {heads, -1});
}

/// [B, T, H, V] -> [B, T, H * V].
inline torch::Tensor merge_heads(const torch::Tensor& x) {
  return x.flatten(-2);
}

inline Linear linear(int64_t in, int64_t out, bool bias) {
  return Linear(in, out, bias);
}

/// One whose weight the mixer reads itself: it stays in float32, in whatever format the others are kept.
inline Linear float_linear(int64_t in, int64_t out, bool bias) {
  Linear made(in, out, bias);
  made->keep_float();
  return made;
}

}  // namespace seqloom
