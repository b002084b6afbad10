#pragma once

#include <cstddef>

namespace seqloom::ops::cpu {

/// Rows of a matrix, `stride` elements apart; absent without data. T is float or uint16_t, the bits of a bfloat16.
template <typename T>
struct RowsOf {
  T* data;
  size_t stride;
};

}  // namespace seqloom::ops::cpu
