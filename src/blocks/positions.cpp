#include "blocks/positions.h"

#include <cmath>
#include <numbers>

#include "base/error.h"
#include "ops/precision.h"
#include "ops/rotary.h"

namespace seqloom {
namespace {

using torch::Tensor;

/// Llama 3's rule: short wavelengths stay, long ones are stretched by `factor`, those between are blended.
Tensor llama3_scaled(const Tensor& plain, const RopeOptions& o) {
  if (o.high_freq_factor <= o.low_freq_factor) {
    misuse("rope scaling \"llama3\": high_freq_factor = {} must be above low_freq_factor = {}", o.high_freq_factor,
           o.low_freq_factor);
  }
  const Tensor wavelength = 2 * std::numbers::pi / plain;
  const double length = o.original_max_position;
  const Tensor s = (length / wavelength - o.low_freq_factor) / (o.high_freq_factor - o.low_freq_factor);
  const Tensor blended = (1 - s) * plain / o.factor + s * plain;
  const Tensor long_or_between = torch::where(wavelength > length / o.low_freq_factor, plain / o.factor, blended);
  return torch::where(wavelength < length / o.high_freq_factor, plain, long_or_between);
}

}  // namespace

Tensor rotate(const Tensor& x, const Tensor& angles, const std::string& layout) {
  const auto type = ops::widened(x).scalar_type();
  return ops::rotary(x, angles.cos().to(type), angles.sin().to(type), /*interleaved=*/layout != "half");
}

Tensor rope_frequencies(int64_t head_width, const RopeOptions& options) {
  const int64_t rotary = options.rotary_dim > 0 ? options.rotary_dim : head_width;
  if (rotary % 2 != 0 || rotary > head_width) {
    misuse("rope: rotary_dim = {} must be even and at most the head width {}", rotary, head_width);
  }
  const Tensor m = torch::arange(rotary / 2, torch::kFloat64);
  const Tensor plain = torch::pow(options.base, -2 * m / static_cast<double>(rotary));
  if (options.scaling == "none") return plain;
  if (options.scaling == "linear") return plain / options.factor;
  if (options.scaling != "llama3") misuse("rope scaling \"{}\": expected none, linear or llama3", options.scaling);
  return llama3_scaled(plain, options);
}

Tensor rope_angles(const Tensor& positions, const Tensor& frequencies) {
  return positions.to(torch::kFloat64).unsqueeze(-1) * frequencies.to(positions.device());
}

Tensor rope(const Tensor& x, const Tensor& positions, const RopeOptions& options) {
  Tensor angles = rope_angles(positions, rope_frequencies(x.size(-1), options));
  if (angles.dim() == 3) angles = angles.unsqueeze(1);  // [B, 1, T, d/2]: the same for every head
  return rotate(x, angles, options.layout);
}

Tensor alibi_slopes(int64_t heads) {
  if (heads < 1) misuse("alibi: heads = {}; expected at least 1", heads);
  const auto powers = [](int64_t n) {
    return torch::pow(2.0, -8.0 * torch::arange(1, n + 1, torch::kFloat64) / static_cast<double>(n));
  };
  int64_t power = 1;
  while (2 * power <= heads) power *= 2;
  const Tensor first = powers(power);
  // other head counts take every second slope of the next power of two
  const Tensor rest = powers(2 * power).slice(0, 0, 2 * (heads - power), 2);
  return torch::cat({first, rest}).to(torch::kFloat32);
}

Tensor alibi_bias(const Tensor& slopes, const Tensor& relative) {
  return -slopes.to(relative.device()).view({-1, 1, 1}) * relative.abs();
}

Tensor t5_bucket(const Tensor& relative, bool bidirectional, int64_t buckets, int64_t max_distance) {
  if (bidirectional && buckets % 2 != 0) misuse("t5_bias: num_buckets = {} must be even when not causal", buckets);
  const int64_t side = bidirectional ? buckets / 2 : buckets, exact = side / 2;
  if (exact < 1 || max_distance <= exact) {
    misuse("t5_bias: max_distance = {} must be above {} exact buckets, of which there must be at least one",
           max_distance, exact);
  }
  const Tensor distance = bidirectional ? relative.abs() : (-relative).clamp_min(0);
  // float32 as in the original: at exact powers the floor depends on the rounding of the logarithm
  const Tensor ratio = (distance.clamp_min(1).to(torch::kFloat32) / static_cast<double>(exact)).log() /
                       std::log(static_cast<double>(max_distance) / static_cast<double>(exact));
  const Tensor far = (exact + (ratio * static_cast<double>(side - exact)).to(torch::kInt64)).clamp_max(side - 1);
  const Tensor bucket = torch::where(distance < exact, distance, far);
  return bidirectional ? bucket + (relative > 0).to(torch::kInt64) * side : bucket;
}

Tensor sinusoidal_at(const Tensor& positions, int64_t width, const std::string& layout) {
  if (width % 2 != 0) misuse("sinusoidal positions need an even width, not {}", width);
  const Tensor m = torch::arange(width / 2, torch::kFloat64);
  const Tensor frequency = torch::exp(-std::log(10000.0) * 2 * m / static_cast<double>(width)).to(positions.device());
  const Tensor angle = positions.to(torch::kFloat64).unsqueeze(-1) * frequency;
  const Tensor vectors = layout == "half" ? torch::cat({angle.sin(), angle.cos()}, -1)
                                          : torch::stack({angle.sin(), angle.cos()}, -1).flatten(-2);
  return vectors.to(torch::kFloat32);
}

Tensor learned_at(const Tensor& table, const Tensor& positions) {
  if (positions.scalar_type() != torch::kInt64)
    misuse("learned positions must be int64, not {}", toString(positions.scalar_type()));
  if (positions.numel() > 0) {
    const auto [low, high] = positions.aminmax();
    const int64_t first = low.item<int64_t>(), last = high.item<int64_t>();
    if (first < 0 || last >= table.size(0)) {
      misuse("position {} is outside the learned table of {} positions; raise max_positions or give shorter input",
             first < 0 ? first : last, table.size(0));
    }
  }
  return torch::embedding(table, positions);
}

Tensor carope_increments(const Tensor& u, const Tensor& weight, const std::optional<Tensor>& bias, int64_t head_width,
                         int64_t first_exponent) {
  if (head_width % 2 != 0) misuse("carope: the head width {} must be even", head_width);
  Tensor score = torch::linear(ops::widened(u), ops::widened(weight));  // [B, T, H]
  if (bias) score = score + ops::widened(*bias);
  // f^i = exp(-i log(1 + softplus)): no pow, so that i = 0 is exactly 1; float64, because phases are summed over T
  const Tensor log_f = -torch::log1p(torch::softplus(score.to(torch::kFloat64)));
  const Tensor exponent =
      torch::arange(first_exponent, first_exponent + head_width / 2, log_f.options().requires_grad(false));
  return (log_f.transpose(1, 2).unsqueeze(-1) * exponent).exp();
}

}  // namespace seqloom
