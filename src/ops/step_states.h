#pragma once

#include <vector>

#include "base/torch.h"

namespace seqloom::ops {

/// What the ops of a step share: each of R rows, one token of a stream, has a state of its own that is changed in
/// place. Neighbouring rows may have one state, which then takes them in their order.

/// Throws UsageError unless there is a state of this shape for each of `rows` rows.
void check_states(const char* op, at::TensorList states, int64_t rows, torch::IntArrayRef shape);

/// Whether a kernel can work on the states: float32 on the CPU, and dense once the dimensions `inner` and the last one
/// have changed places.
bool states_fusable(at::TensorList states, int64_t inner);

/// Where they lie.
std::vector<float*> pointers_of(at::TensorList states);

/// x [R, n] or [R, H, n] as float32 rows for a kernel: a view where it can be one, dense behind its first dimension.
torch::Tensor dense_rows_of(const torch::Tensor& x);

}  // namespace seqloom::ops
