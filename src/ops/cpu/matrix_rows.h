#pragma once

#include "base/torch.h"
#include "ops/cpu/rows_of.h"

namespace seqloom::ops::cpu {

/// The rows of [R, E] from `first` on; absent if t is undefined.
template <typename T>
RowsOf<T> rows_of(const torch::Tensor& t, int64_t first) {
  if (!t.defined()) return {nullptr, 0};
  return {static_cast<T*>(t.data_ptr()) + first * t.stride(0), static_cast<size_t>(t.stride(0))};
}

}  // namespace seqloom::ops::cpu
