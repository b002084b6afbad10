#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/torch.h"

namespace seqloom::ops {

/// Row `rows[b]` of a state for each of `batch` rows of an input, row b itself without `rows`; negative: none. `rows`
/// is int32 or int64 [batch]. Throws UsageError, beginning with `name`, for other shapes and for rows that the state
/// does not have.
std::vector<int64_t> state_rows(const std::optional<torch::Tensor>& rows, int64_t batch, int64_t states,
                                const char* name);

}  // namespace seqloom::ops
