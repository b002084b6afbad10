#include "blocks/linear.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
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
  return ops::linear(x, weight, scale, bias);
}

double LinearImpl::store_as(const WeightFormat& format) {
  if (keeps_float_) return 0;
  const torch::NoGradGuard no_grad;
  const torch::Tensor before = ops::dense_weight(weight.detach(), scale, torch::kFloat32);
  if (format.type == "int8") {
    const auto [entries, scales] = ops::int8_weight(before, format.group);
    take(entries, scales);
  } else {
    take(before.to(format.type == "bfloat16" ? torch::kBFloat16 : torch::kFloat32), {});
  }
  const double norm = before.norm().item<double>();
  return norm == 0 ? 0 : (ops::dense_weight(weight, scale, torch::kFloat32) - before).norm().item<double>() / norm;
}

void LinearImpl::take(const torch::Tensor& kept, const torch::Tensor& its_scale) {
  if (scale.defined()) misuse("the weight is int8 already, and what it was is lost; load the model anew");
  weight.requires_grad_(false);
  weight.set_data(kept);
  scale = its_scale.defined() ? register_buffer("scale", its_scale) : torch::Tensor();
  taken_ = true;
}

EmbeddingImpl::EmbeddingImpl(int64_t rows, int64_t width) : LinearImpl(width, rows, nullptr) {
  if (!WithoutInitialisation::on()) torch::nn::init::normal_(weight);
}

torch::Tensor EmbeddingImpl::rows(const torch::Tensor& ids) const {
  if (!scale.defined()) {
    const torch::Tensor found = torch::embedding(weight, ids);
    return taken_ ? found.to(torch::kFloat32) : found;
  }
  const torch::Tensor flat = ids.flatten();
  auto shape = ids.sizes().vec();
  shape.push_back(weight.size(1));
  return ops::dense_weight(weight.index_select(0, flat), scale.index_select(0, flat), torch::kFloat32).view(shape);
}

double store_as(torch::nn::Module& model, const WeightFormat& format) {
  double greatest = 0;
  for (const auto& item : model.named_modules("", /*include_self=*/false)) {
    auto* linear = dynamic_cast<LinearImpl*>(item.value().get());
    if (linear == nullptr) continue;
    try {
      greatest = std::max(greatest, linear->store_as(format));
    } catch (const Error& error) {
      fail("{}.weight: {}", item.key(), error.what());
    }
  }
  return greatest;
}

}  // namespace seqloom
