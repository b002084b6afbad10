#include "train/train_step.h"

#include <ATen/autocast_mode.h>

#include <set>

namespace seqloom {

Autocast::Autocast(bool on) : before_(at::autocast::is_autocast_enabled(at::kCPU)), on_(on) {
  if (!on_) return;
  at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
  at::autocast::set_autocast_enabled(at::kCPU, true);
}

Autocast::~Autocast() {
  if (!on_) return;
  at::autocast::clear_cache();
  at::autocast::set_autocast_enabled(at::kCPU, before_);
}

std::unique_ptr<torch::optim::AdamW> make_optimizer(const std::vector<torch::Tensor>& parameters,
                                                    const std::vector<torch::Tensor>& without_weight_decay,
                                                    const TrainOptions& o) {
  std::set<const void*> exempt;
  for (const auto& parameter : without_weight_decay) exempt.insert(parameter.unsafeGetTensorImpl());
  std::vector<torch::Tensor> decaying, constant;
  for (const auto& parameter : parameters) {
    (exempt.count(parameter.unsafeGetTensorImpl()) > 0 ? constant : decaying).push_back(parameter);
  }
  const auto options = torch::optim::AdamWOptions(o.learning_rate).betas({o.beta1, o.beta2}).eps(o.eps);
  std::vector<torch::optim::OptimizerParamGroup> groups;
  groups.emplace_back(decaying, std::make_unique<torch::optim::AdamWOptions>(
                                    torch::optim::AdamWOptions(options).weight_decay(o.weight_decay)));
  groups.emplace_back(
      constant, std::make_unique<torch::optim::AdamWOptions>(torch::optim::AdamWOptions(options).weight_decay(0)));
  return std::make_unique<torch::optim::AdamW>(groups, options);
}

}  // namespace seqloom
