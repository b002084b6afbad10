#pragma once

#include <vector>

#include "base/torch.h"

namespace seqloom::ops {

/// While one lives, what this thread computes of rows [S, ...] without gradients is for each row, to the bit, what it
/// would be of the row alone: a stream's text does not depend on those that are decoded beside it. Then `linear` takes
/// the kernel of few rows however many there are. It is torch's kernels that differ: a GEMM sums in another order for
/// another number of rows, and an elementwise loop rounds otherwise where an element falls behind the last vector.
class RowByRow {
 public:
  RowByRow();
  ~RowByRow();
  RowByRow(const RowByRow&) = delete;
  RowByRow& operator=(const RowByRow&) = delete;

  static bool on();

 private:
  bool before_;
};

/// f(x), an elementwise function of x [S, ...], row by row while that is asked for.
template <typename F>
torch::Tensor elementwise(const torch::Tensor& x, F f) {
  if (!RowByRow::on() || x.size(0) <= 1) return f(x);
  std::vector<torch::Tensor> rows;
  for (const torch::Tensor& row : x.unbind(0)) rows.push_back(f(row));
  return torch::stack(rows);
}

}  // namespace seqloom::ops
