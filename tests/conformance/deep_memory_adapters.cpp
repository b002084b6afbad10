// The ops under the deep memories.
#include "conformance/case.h"
#include "ops/newton_schulz.h"
#include "ops/polynomial_features.h"

namespace seqloom::conformance {
namespace {

TensorMap newton_schulz(Case& c) {
  const auto coef = c.config.value("coef", ops::kMuonQuintic);
  return {
      {"y", ops::newton_schulz(c.input("x"), c.config.value("steps", int64_t{5}), coef, c.config.value("eps", 1e-7))}};
}

TensorMap polynomial_features(Case& c) {
  const auto mode = c.config.at("mode").get<std::string>();
  if (mode != "full" && mode != "elementwise") throw Unsupported("mode " + mode);
  const auto& coeff = c.param.at("poly.coeff");
  return {{"y", mode == "full" ? ops::polynomial_features(c.input("x"), coeff)
                               : ops::elementwise_polynomial(c.input("x"), coeff)}};
}

[[maybe_unused]] const bool registered =
    adapters().add("op.newton_schulz", newton_schulz) && adapters().add("op.polynomial_features", polynomial_features);

}  // namespace
}  // namespace seqloom::conformance
