#include "base/error.h"
#include "conformance/case.h"
#include "ops/affine_scan.h"
#include "ops/causal_conv1d.h"
#include "ops/delta_rule.h"
#include "ops/gated_linear_attention.h"
#include "ops/rms_norm.h"
#include "ops/selective_scan.h"

namespace seqloom::conformance {
namespace {

using torch::Tensor;

bool flag(const Case& golden, const char* key) {
  return golden.config.value(key, false);
}

std::optional<Tensor> complex(const std::optional<Tensor>& pairs) {
  return pairs ? std::make_optional(torch::view_as_complex(pairs->contiguous())) : std::nullopt;
}

TensorMap selective_scan(Case& c) {
  const bool is_complex = c.has("A_ri");
  const Tensor A = is_complex ? *complex(c.input("A_ri")) : c.input("A");
  std::optional<Tensor> initial = c.optional_input("initial_state");
  if (c.has("initial_state_ri")) initial = complex(c.input("initial_state_ri"));
  const auto [y, state] =
      ops::selective_scan(c.input("u"), c.input("delta"), A, c.input("B"), c.input("C"), c.optional_input("D"),
                          c.optional_input("z"), c.optional_input("delta_bias"), flag(c, "delta_softplus"), initial);
  return {{"y", y}, {"state", is_complex ? torch::view_as_real(state) : state}};
}

TensorMap causal_conv1d(Case& c) {
  const Config activation = c.config.value("activation", Config());
  if (!activation.is_null() && activation != "silu" && activation != "swish")
    throw Unsupported("activation " + activation.dump());
  const auto [y, state] = ops::causal_conv1d(c.input("x"), c.param.at("weight"), c.optional_param("bias"),
                                             c.optional_input("initial_state"), !activation.is_null());
  return {{"y", y}, {"state", state}};
}

TensorMap affine_scan(Case& c) {
  if (!flag(c, "complex")) {
    const auto [y, state] = ops::affine_scan(c.input("a"), c.input("b"), c.optional_input("initial_state"));
    return {{"y", y}, {"state", state}};
  }
  const auto [y, state] = ops::affine_scan(*complex(c.input("a_ri")), *complex(c.input("b_ri")),
                                           complex(c.optional_input("initial_state_ri")));
  return {{"y", torch::view_as_real(y)}, {"state", torch::view_as_real(state)}};
}

TensorMap gated_linear_attention(Case& c) {
  const double scale = c.config.at("scale").get<double>();
  if (!flag(c, "normalize")) {
    const auto [y, S] = ops::gated_linear_attention(c.input("q"), c.input("k"), c.input("v"), c.optional_input("g"),
                                                    scale, c.optional_input("state.S"));
    return {{"y", y}, {"state.S", S}};
  }
  const auto [y, S, z] = ops::normalized_gated_linear_attention(
      c.input("q"), c.input("k"), c.input("v"), c.optional_input("g"), scale, c.config.at("eps").get<double>(),
      c.optional_input("state.S"), c.optional_input("state.z"));
  return {{"y", y}, {"state.S", S}, {"state.z", z}};
}

TensorMap delta_rule(Case& c) {
  Tensor q = c.input("q"), k = c.input("k");
  if (flag(c, "qk_l2norm")) {
    const double eps = c.config.value("l2_eps", 1e-6);
    q = ops::l2_norm(q, eps);
    k = ops::l2_norm(k, eps);
  }
  const auto [y, S] = ops::delta_rule(q, k, c.input("v"), c.input("beta"), c.optional_input("g"),
                                      c.config.at("scale").get<double>(), c.optional_input("state.S"));
  return {{"y", y}, {"state.S", S}};
}

[[maybe_unused]] const bool registered =
    adapters().add("op.selective_scan", selective_scan) && adapters().add("op.causal_conv1d", causal_conv1d) &&
    adapters().add("op.affine_scan", affine_scan) &&
    adapters().add("op.gated_linear_attention", gated_linear_attention) && adapters().add("op.delta_rule", delta_rule);

}  // namespace
}  // namespace seqloom::conformance
