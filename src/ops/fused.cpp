#include "ops/fused.h"

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

}  // namespace seqloom::ops
