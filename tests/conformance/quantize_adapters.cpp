#include "conformance/case.h"
#include "ops/ema.h"
#include "ops/vector_quantize.h"

namespace seqloom::conformance {
namespace {

using torch::Tensor;

TensorMap vector_quantize_case(Case& c) {
  const Tensor x = c.input("x"), c_sum = c.input("c_sum"), c_count = c.input("c_count");
  const double gamma = c.config.at("gamma").get<double>();
  std::optional<Tensor> keep;
  if (c.has("mask")) keep = c.input("mask").to(torch::kBool);
  const auto [codes, y, commit_loss] =
      ops::vector_quantize(x, ops::codebook(c_sum, c_count, c.config.value("count_min", 0.01)), keep);
  const Tensor counted = keep ? codes.masked_fill(keep->logical_not().unsqueeze(1), -1) : codes;
  const auto [sums, counts] = ops::sums_by_code(x.detach(), counted, c_sum.size(1));
  return {{"y", y},
          {"codes", codes},
          {"commit_loss", commit_loss},
          {"commit_grad_x", torch::autograd::grad({commit_loss}, {x}, {}, /*retain_graph=*/true)[0]},
          {"c_sum_new", torch::lerp(sums.sum(0), c_sum, gamma)},
          {"c_count_new", torch::lerp(counts.sum(0), c_count, gamma)}};
}

TensorMap ema_case(Case& c) {
  if (c.config.value("activation", "silu") != "silu") throw Unsupported("activation");
  const auto initial = c.has("state.h") ? c.optional_input("state.h") : c.optional_input("initial_state");
  const auto [y, h] = ops::ema(c.input("x"), c.param.at("delta"), c.param.at("alpha"), c.param.at("beta"),
                               c.param.at("gamma"), c.param.at("omega"), initial, {});
  return {{"y", y}, {"state.h", h}};
}

[[maybe_unused]] const bool registered =
    adapters().add("op.vector_quantize", vector_quantize_case) && adapters().add("op.ema", ema_case);

}  // namespace
}  // namespace seqloom::conformance
