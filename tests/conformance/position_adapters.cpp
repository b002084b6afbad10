#include "base/error.h"
#include "blocks/positions.h"
#include "conformance/case.h"

namespace seqloom::conformance {
namespace {

using torch::Tensor;

int64_t integer(const Case& c, const char* key, int64_t otherwise) {
  return c.config.value(key, otherwise);
}

TensorMap rope_case(Case& c) {
  RopeOptions options;
  options.base = c.config.value("base", 10000.0);
  options.layout = c.config.value("layout", std::string("half"));
  options.rotary_dim = integer(c, "rotary_dim", 0);
  if (c.config.contains("scaling") && c.config["scaling"].is_object()) {
    const Config& scaling = c.config["scaling"];
    options.scaling = scaling.value("rope_type", scaling.value("type", std::string("none")));
    options.factor = scaling.value("factor", 1.0);
    options.low_freq_factor = scaling.value("low_freq_factor", 1.0);
    options.high_freq_factor = scaling.value("high_freq_factor", 4.0);
    options.original_max_position = scaling.value("original_max_position_embeddings", 8192.0);
  }
  const Tensor x = c.input("x");
  const int64_t offset = integer(c, "offset", 0);
  const Tensor positions =
      c.has("positions") ? c.input("positions") : torch::arange(offset, offset + x.size(2), torch::kInt64);
  return {{"y", rope(x, positions, options)}};
}

TensorMap alibi_case(Case& c) {
  const int64_t heads = c.config.at("heads").get<int64_t>(), length = c.config.at("length").get<int64_t>();
  const Tensor at = torch::arange(length), distance = (at.unsqueeze(0) - at.unsqueeze(1)).abs();
  const Tensor slopes = alibi_slopes(heads);
  return {{"slopes", slopes}, {"bias", -slopes.view({-1, 1, 1}) * distance}};
}

TensorMap t5_case(Case& c) {
  return {{"bucket", t5_bucket(c.input("relative_position"), c.config.at("bidirectional").get<bool>(),
                               c.config.at("num_buckets").get<int64_t>(), c.config.at("max_distance").get<int64_t>())}};
}

TensorMap sinusoidal_case(Case& c) {
  const int64_t offset = integer(c, "offset", 0);
  const Tensor at = torch::arange(offset, offset + c.config.at("length").get<int64_t>());
  return {{"y",
           sinusoidal_at(at, c.config.at("dim").get<int64_t>(), c.config.value("layout", std::string("interleaved")))}};
}

TensorMap learned_case(Case& c) {
  const Tensor x = c.input("x"), table = c.param.at("weight");
  return {{"y", x + table.narrow(0, integer(c, "offset", 0), x.size(1))}};
}

TensorMap carope_case(Case& c) {
  const Tensor q = c.input("q");
  const Tensor u = c.has("u") ? c.input("u") : c.input("x");
  Tensor phase =
      carope_increments(u, c.param.at("weight"), c.optional_param("bias"), q.size(-1), integer(c, "first_exponent", 0))
          .cumsum(2);
  if (c.has("phase")) phase = phase + c.input("phase").unsqueeze(2);
  return {{"y", rotate(q, phase, c.config.value("layout", c.config.value("rope_layout", std::string("half"))))},
          {"phase", phase},
          {"state.phase", phase.select(2, phase.size(2) - 1)}};
}

[[maybe_unused]] const bool registered =
    adapters().add("position.rope", rope_case) && adapters().add("position.alibi", alibi_case) &&
    adapters().add("position.t5_bias", t5_case) && adapters().add("position.sinusoidal", sinusoidal_case) &&
    adapters().add("position.learned", learned_case) && adapters().add("position.carope", carope_case);

}  // namespace
}  // namespace seqloom::conformance
