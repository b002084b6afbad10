#include "ops/fused.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <string_view>

#include "base/error.h"

namespace seqloom::ops {
namespace {

std::atomic<bool>& flag() {
  static std::atomic<bool> enabled = [] {
    const char* value = std::getenv("SEQLOOM_FUSED");
    return value == nullptr || std::string_view(value) != "0";
  }();
  return enabled;
}

}  // namespace

bool fused_enabled() {
  return flag();
}
void set_fused_enabled(bool enabled) {
  flag() = enabled;
}

bool takes_fused(std::initializer_list<std::optional<torch::Tensor>> inputs) {
  const auto fits = [](const std::optional<torch::Tensor>& t) {
    return !t || (t->is_cpu() && (t->scalar_type() == torch::kFloat32 || t->scalar_type() == torch::kBFloat16 ||
                                  t->scalar_type() == torch::kHalf));
  };
  return fused_enabled() && std::all_of(inputs.begin(), inputs.end(), fits);
}

void refuse_second_derivative(const char* op) {
  // autograd leaves gradients on in a backward pass only when asked for a graph of it
  if (torch::GradMode::is_enabled()) {
    misuse("{}: the fused kernel has no second derivative; take the reference with SEQLOOM_FUSED=0", op);
  }
}

}  // namespace seqloom::ops
