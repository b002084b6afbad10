#include "mixers/step_parts.h"

namespace seqloom {

using torch::Tensor;

Tensor Derived::of(const Tensor& parameter, const std::function<Tensor(const Tensor&)>& make) {
  const std::lock_guard lock(mutex_);
  if (!value_.defined() || data_ != parameter.const_data_ptr() || version_ != parameter._version()) {
    value_ = make(parameter);
    data_ = parameter.const_data_ptr();
    version_ = parameter._version();
  }
  return value_;
}

std::vector<Tensor> states_of(at::ArrayRef<Memory*> streams, const std::string& name, int64_t inner) {
  std::vector<Tensor> states;
  states.reserve(streams.size());
  for (Memory* memory : streams) {
    Tensor& state = (*memory)[name];
    const int64_t last = state.dim() - 1;
    if (state.stride(inner) != 1 || !state.transpose(inner, last).is_contiguous()) {
      state = state.transpose(inner, last).contiguous().transpose(inner, last);
    }
    states.push_back(state);
  }
  return states;
}

std::vector<int64_t> positions_of(at::ArrayRef<Memory*> streams) {
  std::vector<int64_t> positions;
  positions.reserve(streams.size());
  for (size_t i = 0; i < streams.size(); ++i) {
    const bool goes_on = i > 0 && streams[i] == streams[i - 1];
    positions.push_back(goes_on ? positions.back() + 1 : streams[i]->tokens);
  }
  return positions;
}

void count_each(at::ArrayRef<Memory*> streams) {
  for (Memory* memory : streams) memory->advance(1, {});
}

}  // namespace seqloom
