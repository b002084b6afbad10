#pragma once

#include "base/torch.h"
#include "mixers/layout.h"
#include "models/decoder.h"
#include "ops/linear_cross_entropy.h"

namespace seqloom {

/// A target that asks for nothing.
constexpr int64_t kIgnored = -100;

inline torch::Tensor with_losses_of(const Pass& pass, torch::Tensor loss) {
  for (const auto& extra : pass.losses) loss = loss + extra;
  return loss;
}

/// Mean cross entropy of logits [B, T, V] against targets [B, T] int64, kIgnored left out, and what the layers of the
/// pass add to it.
inline torch::Tensor token_loss(const torch::Tensor& logits, const torch::Tensor& targets, const Pass& pass) {
  return with_losses_of(
      pass, torch::cross_entropy_loss(logits.flatten(0, 1), targets.flatten(), {}, at::Reduction::Mean, kIgnored));
}

/// The same of a decoder that reads ids [B, T] of that layout; a large vocabulary's logits are not held whole.
inline torch::Tensor token_loss(Decoder& decoder, const torch::Tensor& ids, const torch::Tensor& targets,
                                const Layout& layout = {}) {
  Pass pass;
  pass.layout = layout;
  const torch::Tensor hidden = decoder.hidden(ids, pass);
  return with_losses_of(
      pass, ops::linear_cross_entropy(hidden.flatten(0, 1), decoder.output_weight(), targets.flatten(), kIgnored));
}

}  // namespace seqloom
