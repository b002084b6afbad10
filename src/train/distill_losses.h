#pragma once

#include <cstdint>
#include <vector>

#include "base/torch.h"

namespace seqloom {

/// One attention layer of a pair, on the same hidden states: weights [B, H, T, T], of which the teacher's are the
/// target, and the heads' outputs before the output projection, of any one shape.
struct AttentionPair {
  torch::Tensor student_weights, teacher_weights;  // both undefined: only outputs are compared
  torch::Tensor student_out, teacher_out;
};

struct AttentionTransferLoss {
  torch::Tensor total, xent, mse;  // scalars; xent and mse with their factors, total their sum
};

/// Attention transfer (LoLCATs, Zhang et al. 2024, arXiv 2410.10254, sec. 3.1), the mean over layers of
///   xent_factor CE(log clamp(A_student, 1e-12), A_teacher) + mse_factor mean (o_student - o_teacher)^2,
/// CE the mean over all rows. Throws UsageError for no layers, shapes that differ, or xent_factor without weights.
AttentionTransferLoss attention_transfer_loss(const std::vector<AttentionPair>& layers, double xent_factor = 0,
                                              double mse_factor = 1000);

struct DistillationWeights {
  double ce = 1, kl = 1, hidden = 0;
  double temperature = 1;
  int64_t ignore_index = -100;
};

struct DistillationLoss {
  torch::Tensor total, ce, kl, hidden;  // scalars; the parts without their weights, kl with temperature^2
};

/// Distillation (Hinton et al. 2015, arXiv 1503.02531): ce CE(logits, labels) + kl tau^2 KL(teacher_tau || student_tau)
/// + hidden mean_l MSE(hidden_l, teacher_hidden_l). logits, teacher_logits [B, T, V], labels [B, T] int64 for the same
/// places (no shift); CE and KL are means over labels other than ignore_index, 0 where there are none; no hidden
/// layers give 0. Throws UsageError for shapes that differ.
DistillationLoss distillation_loss(const torch::Tensor& logits, const torch::Tensor& teacher_logits,
                                   const torch::Tensor& labels, const std::vector<torch::Tensor>& hidden,
                                   const std::vector<torch::Tensor>& teacher_hidden,
                                   const DistillationWeights& weights);

}  // namespace seqloom
