#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "base/error.h"
#include "base/torch.h"

namespace seqloom::ops::cpu {

/// Walks through the rows of a tensor (all dimensions but the last, which must be dense), in their logical order and
/// whatever their strides, 0 included: views and broadcast tensors are read where they lie.
class RowWalk {
 public:
  static constexpr int64_t kDims = 7;

  RowWalk() = default;
  explicit RowWalk(const torch::Tensor& t) {
    if (t.dim() > kDims + 1) misuse("a fused kernel got {} dimensions, at most {} are known", t.dim(), kDims + 1);
    for (int64_t d = 0; d + 1 < t.dim(); ++d) {
      // neighbours that lie as one dimension are walked as one
      const bool joined = dims_ > 0 && stride_[dims_ - 1] == t.stride(d) * t.size(d);
      if (t.size(d) == 1) continue;
      if (!joined) ++dims_;
      size_[dims_ - 1] = joined ? size_[dims_ - 1] * t.size(d) : t.size(d);
      stride_[dims_ - 1] = t.stride(d);
    }
  }

  /// Where row `row` begins, in elements; `next` goes on from there.
  int64_t seek(int64_t row) {
    offset_ = 0;
    for (int64_t d = dims_; d-- > 0;) {
      place_[d] = row % size_[d];
      row /= size_[d];
      offset_ += place_[d] * stride_[d];
    }
    return offset_;
  }

  int64_t offset() const { return offset_; }

  void next() {
    for (int64_t d = dims_; d-- > 0;) {
      offset_ += stride_[d];
      if (++place_[d] < size_[d]) return;
      offset_ -= size_[d] * stride_[d];
      place_[d] = 0;
    }
  }

 private:
  int64_t dims_ = 0, offset_ = 0;
  std::array<int64_t, kDims> size_{}, stride_{}, place_{};
};

/// The tensor itself when its last dimension is dense, else a dense copy.
inline torch::Tensor dense_rows(const torch::Tensor& t) {
  return t.stride(-1) == 1 || t.size(-1) == 1 ? t : t.contiguous();
}

}  // namespace seqloom::ops::cpu
