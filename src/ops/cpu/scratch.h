#pragma once

#include <hwy/aligned_allocator.h>

#include <cstddef>
#include <utility>

namespace seqloom::ops::cpu {

/// Aligned memory of one thread that is handed out in pieces; each piece is aligned when all sizes are multiples of 16.
class Scratch {
 public:
  explicit Scratch(size_t size) : memory_(hwy::AllocateAligned<float>(size)), next_(memory_.get()) {}
  float* take(size_t size) { return std::exchange(next_, next_ + size); }

 private:
  hwy::AlignedFreeUniquePtr<float[]> memory_;
  float* next_;
};

}  // namespace seqloom::ops::cpu
