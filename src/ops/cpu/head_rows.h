#pragma once

#include <cstddef>

namespace seqloom::ops::cpu {

/// Rows of one head of one sequence: token t is at from + t * row.
struct HeadRows {
  const float* from;
  size_t row;
};
struct HeadResult {
  float* to;
  size_t row;
};

/// The tokens of a chunk, and its rows: as many, and zeros up to a multiple of the padding.
struct ChunkRows {
  size_t rows, tokens;
};

}  // namespace seqloom::ops::cpu
