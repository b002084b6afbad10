#include "ops/state_rows.h"

#include <fmt/ostream.h>

#include <numeric>

#include "base/error.h"
#include "ops/packing.h"

namespace seqloom::ops {

std::vector<int64_t> state_rows(const std::optional<torch::Tensor>& rows, int64_t batch, int64_t states,
                                const char* name) {
  if (!rows) {
    if (batch != states) misuse("{}: {} rows of states for {} rows of inputs", name, states, batch);
    std::vector<int64_t> all(batch);
    std::iota(all.begin(), all.end(), 0);
    return all;
  }
  if (rows->dim() != 1 || rows->size(0) != batch || !at::isIntegralType(rows->scalar_type(), false)) {
    misuse("{}: rows are {} of {}, expected one whole number for each of {} rows", name, fmt::streamed(rows->sizes()),
           fmt::streamed(rows->dtype()), batch);
  }
  const auto all = to_vector(rows->to(torch::kInt64).cpu().contiguous());
  for (const int64_t row : all) {
    if (row >= states) misuse("{}: row {} of a state of {} rows", name, row, states);
  }
  return all;
}

}  // namespace seqloom::ops
