#pragma once

#include <cstddef>
#include <cstdint>

namespace seqloom::ops::cpu {

/// Rows of one head of one sequence, float or the bits of bfloat16: token t begins at element t * row.
struct HeadRows {
  const void* from;
  size_t row;
  bool narrow = false;  // bfloat16

  /// The rows that begin `elements` later.
  HeadRows at(size_t elements) const {
    return {static_cast<const char*>(from) + elements * (narrow ? sizeof(uint16_t) : sizeof(float)), row, narrow};
  }
};
struct HeadResult {
  void* to;
  size_t row;
  bool narrow = false;

  HeadResult at(size_t elements) const {
    return {static_cast<char*>(to) + elements * (narrow ? sizeof(uint16_t) : sizeof(float)), row, narrow};
  }
};

/// The tokens of a chunk, and its rows: as many, and zeros up to a multiple of the padding.
struct ChunkRows {
  size_t rows, tokens;
};

}  // namespace seqloom::ops::cpu
