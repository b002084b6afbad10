#pragma once

#include "base/torch.h"
#include "mixers/layout.h"

namespace seqloom {

/// A target that asks for nothing.
constexpr int64_t kIgnored = -100;

/// Mean cross entropy of logits [B, T, V] against targets [B, T] int64, kIgnored left out, and what the layers of the
/// pass add to it.
inline torch::Tensor token_loss(const torch::Tensor& logits, const torch::Tensor& targets, const Pass& pass) {
  torch::Tensor loss =
      torch::cross_entropy_loss(logits.flatten(0, 1), targets.flatten(), {}, at::Reduction::Mean, kIgnored);
  for (const auto& extra : pass.losses) loss = loss + extra;
  return loss;
}

}  // namespace seqloom
