#include "conformance/case.h"
#include "ops/ssd.h"

namespace seqloom::conformance {
namespace {

TensorMap ssd(Case& c) {
  ops::StepRule rule{c.optional_input("dt_bias"), c.config.value("dt_softplus", false)};
  if (c.config.contains("dt_limit")) {
    const Config& limit = c.config["dt_limit"];
    rule.low = limit.at(0).get<double>();
    if (!limit.at(1).is_null()) rule.high = limit.at(1).get<double>();
  }
  const auto [y, state] = ops::ssd(c.input("x"), c.input("dt"), c.input("A"), c.input("B"), c.input("C"),
                                   c.optional_input("D"), c.optional_input("z"), rule,
                                   c.optional_input("initial_state"), {}, c.config.value("chunk_size", int64_t{64}));
  return {{"y", y}, {"state", state}};
}

/// A case cannot hold -inf: it holds exp(segsum(x)).
TensorMap segsum(Case& c) {
  return {{"y", ops::segsum(c.input("x")).exp()}};
}

[[maybe_unused]] const bool registered = adapters().add("op.ssd", ssd) && adapters().add("op.segsum", segsum);

}  // namespace
}  // namespace seqloom::conformance
