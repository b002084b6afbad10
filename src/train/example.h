#pragma once

#include "base/torch.h"

namespace seqloom {

/// What a Task may offer besides: a row of held-out data, on which a study measures memory and draws mixing matrices.
class HasExample {
 public:
  virtual ~HasExample() = default;
  /// Token ids of one row, [1, T] int64.
  virtual torch::Tensor example() const = 0;
};

}  // namespace seqloom
