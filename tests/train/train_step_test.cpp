#include "train/train_step.h"

#include <gtest/gtest.h>

#include "support/compare.h"

namespace seqloom {
namespace {

using torch::Tensor;

TEST(UpdateParameters, EqualsTheOptimizersOwnStep) {
  torch::manual_seed(1);
  const auto parameters = [] {
    torch::manual_seed(2);
    return std::vector<Tensor>{torch::randn({37, 5}).requires_grad_(), torch::randn({11}).requires_grad_(),
                               torch::randn({3}).requires_grad_()};
  };
  const auto fused = parameters(), plain = parameters();
  TrainOptions options;
  options.learning_rate = 0.01;
  const auto ours = make_optimizer(fused, {fused[1]}, options), theirs = make_optimizer(plain, {plain[1]}, options);
  for (int step = 0; step < 5; ++step) {
    for (size_t i = 0; i < 2; ++i) {  // the third never has a gradient
      const Tensor gradient = torch::randn_like(fused[i]);
      fused[i].mutable_grad() = gradient.clone();
      plain[i].mutable_grad() = gradient;
    }
    update_parameters(*ours);
    theirs->step();
  }
  for (size_t i = 0; i < fused.size(); ++i) expect_near(fused[i], plain[i], 1e-6, std::to_string(i));
  EXPECT_EQ(ours->state().size(), 2);
  const auto& state =
      static_cast<const torch::optim::AdamWParamState&>(*ours->state().at(fused[0].unsafeGetTensorImpl()));
  EXPECT_EQ(state.step(), 5);
}

}  // namespace
}  // namespace seqloom
