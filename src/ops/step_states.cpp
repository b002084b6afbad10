#include "ops/step_states.h"

#include <fmt/ostream.h>

#include <algorithm>

#include "base/error.h"
#include "ops/precision.h"

namespace seqloom::ops {

using torch::Tensor;

void check_states(const char* op, at::TensorList states, int64_t rows, torch::IntArrayRef shape) {
  if (static_cast<int64_t>(states.size()) != rows) {
    misuse("{}: {} states for {} rows; each row needs one", op, states.size(), rows);
  }
  for (const Tensor& state : states) {
    if (state.sizes() == shape) continue;
    misuse("{}: a state is {}, expected {}", op, fmt::streamed(state.sizes()), fmt::streamed(shape));
  }
}

bool states_fusable(at::TensorList states, int64_t inner) {
  return std::all_of(states.begin(), states.end(), [&](const Tensor& state) {
    return state.is_cpu() && state.scalar_type() == torch::kFloat32 && !state.requires_grad() &&
           state.transpose(inner, state.dim() - 1).is_contiguous();
  });
}

std::vector<float*> pointers_of(at::TensorList states) {
  std::vector<float*> all;
  all.reserve(states.size());
  for (const Tensor& state : states) all.push_back(state.mutable_data_ptr<float>());
  return all;
}

Tensor dense_rows_of(const Tensor& x) {
  const Tensor wide = widened(x);
  return wide.select(0, 0).is_contiguous() ? wide : wide.contiguous();
}

}  // namespace seqloom::ops
