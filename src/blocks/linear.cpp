#include "blocks/linear.h"

#include <cmath>

#include "ops/linear.h"

namespace seqloom {
namespace {

thread_local bool without_initialisation = false;

}  // namespace

WithoutInitialisation::WithoutInitialisation() : before_(without_initialisation) {
  without_initialisation = true;
}

WithoutInitialisation::~WithoutInitialisation() {
  without_initialisation = before_;
}

bool WithoutInitialisation::on() {
  return without_initialisation;
}

LinearImpl::LinearImpl(int64_t in, int64_t out, std::nullptr_t)
    : weight(register_parameter("weight", torch::empty({out, in}))) {}

LinearImpl::LinearImpl(int64_t in, int64_t out, bool with_bias) : LinearImpl(in, out, nullptr) {
  if (with_bias) bias = register_parameter("bias", torch::empty({out}));
  if (WithoutInitialisation::on()) return;
  torch::nn::init::kaiming_uniform_(weight, std::sqrt(5.0));
  const double bound = in > 0 ? 1 / std::sqrt(static_cast<double>(in)) : 0;
  if (with_bias) torch::nn::init::uniform_(bias, -bound, bound);
}

torch::Tensor LinearImpl::forward(const torch::Tensor& x) {
  return ops::linear(x, weight, {}, bias.defined() ? std::make_optional(bias) : std::nullopt);
}

EmbeddingImpl::EmbeddingImpl(int64_t rows, int64_t width) : LinearImpl(width, rows, nullptr) {
  if (!WithoutInitialisation::on()) torch::nn::init::normal_(weight);
}

torch::Tensor EmbeddingImpl::rows(const torch::Tensor& ids) const {
  return torch::embedding(weight, ids);
}

}  // namespace seqloom
