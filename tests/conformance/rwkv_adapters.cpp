#include "conformance/case.h"
#include "ops/rwkv.h"

namespace seqloom::conformance {
namespace {

/// Outputs are linear in r, so a case's scale goes there.
torch::Tensor scaled_r(const Case& c) {
  return c.input("r") * c.config.value("scale", 1.0);
}

TensorMap rwkv6(Case& c) {
  const auto [y, S] =
      ops::rwkv6(scaled_r(c), c.input("k"), c.input("v"), c.input("w"), c.param.at("u"), c.optional_input("state.S"));
  return {{"y", y}, {"state.S", S}};
}

TensorMap rwkv7(Case& c) {
  const auto [y, S] = ops::rwkv7(scaled_r(c), c.input("w"), c.input("k"), c.input("v"), c.input("a"), c.input("b"),
                                 c.optional_input("state.S"));
  return {{"y", y}, {"state.S", S}};
}

[[maybe_unused]] const bool registered = adapters().add("op.rwkv6", rwkv6) && adapters().add("op.rwkv7", rwkv7);

}  // namespace
}  // namespace seqloom::conformance
