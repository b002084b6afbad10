#include "ops/fused.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <string_view>

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

bool fusable(const std::vector<torch::Tensor>& tensors) {
  return fused_enabled() && std::all_of(tensors.begin(), tensors.end(), [](const torch::Tensor& t) {
           if (!t.defined()) return true;
           const auto type = t.scalar_type();
           return t.is_cpu() && (type == torch::kFloat32 || type == torch::kBFloat16 || type == torch::kHalf);
         });
}

}  // namespace seqloom::ops
