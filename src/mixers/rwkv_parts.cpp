#include "mixers/rwkv_parts.h"

#include "mixers/heads.h"
#include "ops/precision.h"

namespace seqloom {

using torch::Tensor;

namespace {

Tensor previous_packed_tokens(const Tensor& x, Tensor& shift, const Tensor& offsets) {
  const int64_t rows = offsets.size(0) - 1, tokens = x.size(1);
  const Tensor line = torch::cat({shift.to(x.scalar_type()), x[0]});  // [S + N, D]
  const Tensor first = offsets.narrow(0, 0, rows), end = offsets.narrow(0, 1, rows), row = torch::arange(rows);
  const Tensor some = end > first;
  Tensor before = torch::arange(rows - 1, rows + tokens - 1);  // in `line`
  before.index_put_({first.index({some})}, row.index({some}));
  shift = ops::widened(line.index_select(0, torch::where(some, end + (rows - 1), row).to(x.device())));
  return line.index_select(0, before.to(x.device())).unsqueeze(0);
}

}  // namespace

Tensor previous_tokens(const Tensor& x, Tensor& shift, const Layout& layout) {
  if (layout.is_packed()) return previous_packed_tokens(x, shift, layout.offsets().to(torch::kCPU));
  const Tensor keep = layout.keep(x.size(0), x.size(1));
  const int64_t tokens = x.size(1);
  const Tensor line = torch::cat({shift.to(x.scalar_type()).unsqueeze(1), x}, 1);  // [B, 1 + T, D]
  if (!keep.defined()) {
    shift = ops::widened(x.select(1, tokens - 1));
    return line.narrow(1, 0, tokens);
  }
  // place in `line` of the last real token up to and with each one; 0 is the shift itself
  const Tensor place = torch::arange(1, tokens + 1, torch::TensorOptions(torch::kInt64).device(x.device())) * keep;
  const Tensor latest = std::get<0>(torch::constant_pad_nd(place, {1, 0}).cummax(1));  // [B, 1 + T]
  const auto taken = [&](const Tensor& at) { return line.gather(1, at.unsqueeze(-1).expand({-1, -1, x.size(2)})); };
  shift = ops::widened(taken(latest.narrow(1, tokens, 1)).squeeze(1));
  return taken(latest.narrow(1, 0, tokens));
}

Tensor shift_ramp(int64_t width) {
  return 1 - torch::arange(width, torch::kFloat32) / static_cast<double>(width);
}

LowRank::LowRank(int64_t in, int64_t rank, int64_t out, Activation activation, bool bias) : activation_(activation) {
  const auto lora = register_module("lora", std::make_shared<torch::nn::Module>());
  down_ = lora->register_module("0", linear(in, rank, false));
  up_ = lora->register_module("2", linear(rank, out, bias));
}

Tensor LowRank::forward(const Tensor& x) {
  const Tensor low = down_(x);
  switch (activation_) {
    case Activation::kTanh:
      return up_(torch::tanh(low));
    case Activation::kSigmoid:
      return up_(torch::sigmoid(low));
    default:
      return up_(low);
  }
}

HeadNorm::HeadNorm(int64_t channels, double eps) : eps_(eps) {
  weight_ = register_parameter("weight", torch::ones({channels}));
  bias_ = register_parameter("bias", torch::zeros({channels}));
}

Tensor HeadNorm::forward(const Tensor& o) {
  const Tensor normal = torch::layer_norm(ops::widened(o), {o.size(-1)}, {}, {}, eps_);
  return torch::addcmul(ops::widened(bias_), merge_heads(normal), ops::widened(weight_)).to(o.scalar_type());
}

}  // namespace seqloom
