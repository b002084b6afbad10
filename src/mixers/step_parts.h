#pragma once

#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "base/torch.h"
#include "memory/memory.h"

namespace seqloom {

/// A tensor made of a parameter, kept until the parameter changes: what every step would make again.
class Derived {
 public:
  Derived() = default;
  Derived(const Derived&) {}  // a copied module makes its own
  Derived& operator=(const Derived&) = delete;

  torch::Tensor of(const torch::Tensor& parameter, const std::function<torch::Tensor(const torch::Tensor&)>& make);

 private:
  std::mutex mutex_;
  const void* data_ = nullptr;
  uint32_t version_ = 0;
  torch::Tensor value_;
};

/// The tensors `name` of all streams, for ops that change them in place. Dimension `inner`, which goes through a
/// kernel's vector lanes, lies dense in each; one that does not yet is laid out anew in its memory.
std::vector<torch::Tensor> states_of(at::ArrayRef<Memory*> streams, const std::string& name, int64_t inner);

/// The position of each stream's token: what its memory has read, and for neighbours that are one memory, counted on.
std::vector<int64_t> positions_of(at::ArrayRef<Memory*> streams);

/// Each has read one more token.
void count_each(at::ArrayRef<Memory*> streams);

}  // namespace seqloom
