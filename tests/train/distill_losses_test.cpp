#include "train/distill_losses.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace seqloom {
namespace {

TEST(Distillation, IgnoredTokensAndNoTokensCountNothing) {
  torch::manual_seed(4);
  const torch::Tensor logits = torch::randn({2, 5, 7}).requires_grad_(true), teacher = torch::randn({2, 5, 7});
  torch::Tensor labels = torch::randint(7, {2, 5}, torch::kInt64);
  labels[1].fill_(-100);
  DistillationWeights weights;
  weights.temperature = 3;
  const auto half = distillation_loss(logits, teacher, labels, {}, {}, weights);
  const auto first =
      distillation_loss(logits.narrow(0, 0, 1), teacher.narrow(0, 0, 1), labels.narrow(0, 0, 1), {}, {}, weights);
  EXPECT_NEAR(half.total.item<double>(), first.total.item<double>(), 1e-6);
  labels.fill_(-100);
  const auto none = distillation_loss(logits, teacher, labels, {}, {}, weights);
  EXPECT_EQ(none.total.item<double>(), 0);
  none.total.backward();
  EXPECT_EQ(logits.grad().abs().max().item<double>(), 0);
}

TEST(Distillation, ATeacherIsItsOwnBestStudent) {
  const torch::Tensor logits = torch::randn({2, 5, 7}), hidden = torch::randn({2, 5, 3});
  const torch::Tensor labels = torch::zeros({2, 5}, torch::kInt64);
  const auto loss = distillation_loss(logits, logits, labels, {hidden}, {hidden}, {});
  EXPECT_NEAR(loss.kl.item<double>(), 0, 1e-6);
  EXPECT_EQ(loss.hidden.item<double>(), 0);
}

TEST(Distillation, WrongShapesAreRefused) {
  const torch::Tensor logits = torch::randn({2, 5, 7}), labels = torch::zeros({2, 5}, torch::kInt64);
  EXPECT_THROW(distillation_loss(logits, logits.narrow(2, 0, 6), labels, {}, {}, {}), UsageError);
  EXPECT_THROW(distillation_loss(logits, logits, labels.narrow(1, 0, 4), {}, {}, {}), UsageError);
  EXPECT_THROW(distillation_loss(logits, logits, labels, {logits}, {}, {}), UsageError);
}

TEST(AttentionTransfer, NeedsLayersAndWhatItCompares) {
  const torch::Tensor out = torch::randn({2, 2, 4, 3});
  EXPECT_THROW(attention_transfer_loss({}), UsageError);
  EXPECT_THROW(attention_transfer_loss({{{}, {}, out, out}}, /*xent_factor=*/1), UsageError);
  EXPECT_THROW(attention_transfer_loss({{{}, {}, out, out.narrow(2, 0, 3)}}), UsageError);
  EXPECT_EQ(attention_transfer_loss({{{}, {}, out, out}}).total.item<double>(), 0);
}

}  // namespace
}  // namespace seqloom
