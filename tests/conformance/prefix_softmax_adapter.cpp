#include "conformance/case.h"
#include "ops/prefix_softmax_scan.h"

namespace seqloom::conformance {
namespace {

TensorMap prefix_softmax_scan(Case& c) {
  std::optional<ops::SoftmaxPartial> initial;
  if (c.has("init_m")) initial = {c.input("init_m"), c.input("init_u"), c.input("init_w")};
  const auto [y, state] = ops::prefix_softmax_scan(c.input("s"), c.input("v"), c.optional_input("mask"), initial);
  return {{"y", y}, {"state.m", state.m}, {"state.u", state.u}, {"state.w", state.w}};
}

[[maybe_unused]] const bool registered = adapters().add("op.prefix_softmax_scan", prefix_softmax_scan);

}  // namespace
}  // namespace seqloom::conformance
