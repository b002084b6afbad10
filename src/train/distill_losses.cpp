#include "train/distill_losses.h"

#include <fmt/ostream.h>

#include "base/error.h"
#include "ops/precision.h"

namespace seqloom {
namespace {

using torch::Tensor;

void check_same(const char* loss, const char* what, const Tensor& student, const Tensor& teacher) {
  if (!student.defined() || !teacher.defined() || student.sizes() != teacher.sizes()) {
    const auto shape = [](const Tensor& t) {
      return t.defined() ? fmt::format("{}", fmt::streamed(t.sizes())) : "none";
    };
    misuse("{}: the student's {} are {}, the teacher's {}: expected one shape", loss, what, shape(student),
           shape(teacher));
  }
}

/// Cross-entropy of the student's rows against the teacher's as soft targets, the mean over rows.
Tensor row_cross_entropy(const Tensor& student, const Tensor& teacher) {
  const Tensor logits = ops::widened(student).clamp_min(1e-12).log();
  return -(ops::widened(teacher) * torch::log_softmax(logits, -1)).sum(-1).mean();
}

Tensor mean_squared(const Tensor& student, const Tensor& teacher) {
  return (ops::widened(student) - ops::widened(teacher)).square().mean();
}

}  // namespace

AttentionTransferLoss attention_transfer_loss(const std::vector<AttentionPair>& layers, double xent_factor,
                                              double mse_factor) {
  constexpr const char* kName = "attention_transfer";
  if (layers.empty()) misuse("{}: there are no layers", kName);
  const auto count = static_cast<double>(layers.size());
  const Tensor zero = torch::zeros({}, ops::widened(layers.front().student_out).options().requires_grad(false));
  AttentionTransferLoss loss{{}, zero, zero};
  for (const AttentionPair& layer : layers) {
    check_same(kName, "outputs", layer.student_out, layer.teacher_out);
    loss.mse = loss.mse + mse_factor / count * mean_squared(layer.student_out, layer.teacher_out);
    if (xent_factor == 0) continue;
    check_same(kName, "weights", layer.student_weights, layer.teacher_weights);
    loss.xent = loss.xent + xent_factor / count * row_cross_entropy(layer.student_weights, layer.teacher_weights);
  }
  loss.total = loss.xent + loss.mse;
  return loss;
}

DistillationLoss distillation_loss(const Tensor& logits, const Tensor& teacher_logits, const Tensor& labels,
                                   const std::vector<Tensor>& hidden, const std::vector<Tensor>& teacher_hidden,
                                   const DistillationWeights& weights) {
  constexpr const char* kName = "distillation";
  check_same(kName, "logits", logits, teacher_logits);
  if (labels.sizes() != logits.sizes().slice(0, logits.dim() - 1)) {
    misuse("{}: labels are {}, expected one for each of the logits {}", kName, fmt::streamed(labels.sizes()),
           fmt::streamed(logits.sizes()));
  }
  if (hidden.size() != teacher_hidden.size()) {
    misuse("{}: {} hidden layers of the student, {} of the teacher", kName, hidden.size(), teacher_hidden.size());
  }
  const Tensor keep = labels != weights.ignore_index;
  const Tensor student = ops::widened(logits).index({keep}), teacher = ops::widened(teacher_logits).index({keep});
  const auto kept = static_cast<double>(std::max<int64_t>(1, student.size(0)));
  const double tau = weights.temperature;
  const Tensor log_p = torch::log_softmax(teacher / tau, -1), log_q = torch::log_softmax(student / tau, -1);
  DistillationLoss loss;
  loss.ce = -torch::log_softmax(student, -1).gather(-1, labels.index({keep}).unsqueeze(-1)).sum() / kept;
  loss.kl = tau * tau * (log_p.exp() * (log_p - log_q)).sum() / kept;
  loss.hidden = torch::zeros({}, loss.ce.options());
  for (size_t l = 0; l < hidden.size(); ++l) {
    check_same(kName, "hidden states", hidden[l], teacher_hidden[l]);
    loss.hidden = loss.hidden + mean_squared(hidden[l], teacher_hidden[l]) / static_cast<double>(hidden.size());
  }
  loss.total = weights.ce * loss.ce + weights.kl * loss.kl + weights.hidden * loss.hidden;
  return loss;
}

}  // namespace seqloom
