#include "ops/linear_cross_entropy.h"

#include <ATen/autocast_mode.h>
#include <fmt/ostream.h>

#include "base/error.h"
#include "ops/fused.h"
#include "ops/operator.h"
#include "ops/precision.h"
#include "ops/reference_gradient.h"

namespace seqloom::ops {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Tensor reference(const Tensor& hidden, const Tensor& weight, const Tensor& targets, int64_t ignored) {
  return torch::cross_entropy_loss(widened(torch::linear(hidden, weight)), targets, {}, at::Reduction::Mean, ignored);
}

struct Sums {
  Tensor loss;              // scalar
  Tensor dhidden, dweight;  // of the loss; undefined where no gradient is wanted
};

/// One chunk of rows. `share` [rows, 1] is what a row counts: 1 / (all that count), or 0.
void add_chunk(const Tensor& hidden, const Tensor& weight, const Tensor& targets, const Tensor& share, Sums& sums,
               int64_t first) {
  Tensor logits = widened(torch::mm(hidden, weight.t()));
  const Tensor top = logits.amax(1, /*keepdim=*/true), own = logits.gather(1, targets);
  const Tensor odds = logits.sub_(top).exp_(), sum = odds.sum(1, /*keepdim=*/true);
  sums.loss += ((sum.log() + top - own) * share).sum();
  if (!sums.dweight.defined()) return;
  odds.mul_(share / sum).scatter_add_(1, targets, -share);  // softmax - one-hot
  const Tensor d = odds.to(hidden.scalar_type());
  sums.dhidden.narrow(0, first, hidden.size(0)).copy_(torch::mm(d, weight));
  if (d.scalar_type() == sums.dweight.scalar_type()) {
    sums.dweight.addmm_(d.t(), hidden);
  } else {
    sums.dweight.add_(torch::mm(d.t(), hidden));  // sums stay in float32
  }
}

Sums in_chunks(const Tensor& hidden, const Tensor& weight, const Tensor& targets, int64_t ignored, int64_t rows,
               bool gradient) {
  const torch::NoGradGuard no_grad;
  const bool autocast = at::autocast::is_autocast_enabled(hidden.device().type());
  const auto type = autocast ? at::autocast::get_autocast_dtype(hidden.device().type())
                             : torch::promote_types(hidden.scalar_type(), weight.scalar_type());
  const Tensor h = hidden.to(type), w = weight.to(type);
  const auto wide = torch::TensorOptions(hidden.device()).dtype(type == torch::kFloat64 ? type : torch::kFloat32);
  const Tensor counts = targets.ne(ignored);
  const Tensor share = (counts.to(wide.dtype()) / counts.sum()).unsqueeze(-1);
  const Tensor places = targets.masked_fill(counts.logical_not(), 0).unsqueeze(-1);
  Sums sums;
  sums.loss = torch::zeros({}, wide);
  if (gradient) {
    sums.dhidden = torch::empty(hidden.sizes(), hidden.options());
    sums.dweight = torch::zeros(weight.sizes(), wide);
  }
  for (int64_t first = 0; first < hidden.size(0); first += rows) {
    const int64_t count = std::min(rows, hidden.size(0) - first);
    const auto part = [&](const Tensor& t) { return t.narrow(0, first, count); };
    add_chunk(part(h), w, part(places), part(share), sums, first);
  }
  if (gradient) sums.dweight = sums.dweight.to(weight.scalar_type());
  return sums;
}

class ChunkedLoss : public torch::autograd::Function<ChunkedLoss> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& hidden, const Tensor& weight, const Tensor& targets,
                        int64_t ignored, int64_t rows) {
    const Sums sums = in_chunks(hidden, weight, targets, ignored, rows, /*gradient=*/true);
    context->save_for_backward({hidden, weight, targets, sums.dhidden, sums.dweight});
    context->saved_data["ignored"] = ignored;
    return sums.loss;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto s = context->get_saved_variables();
    if (torch::GradMode::is_enabled()) {
      const Tensor loss = reference(s[0], s[1], s[2], context->saved_data["ignored"].toInt());
      variable_list all = reference_gradients({loss}, {s[0], s[1]}, gradients);
      all.resize(5);
      return all;
    }
    const auto scaled = [&](const Tensor& d) { return d * gradients[0].to(d.scalar_type()); };
    return {scaled(s[3]), scaled(s[4]), Tensor(), Tensor(), Tensor()};
  }
};

void check(const Tensor& hidden, const Tensor& weight, const Tensor& targets, int64_t ignored, int64_t rows) {
  if (hidden.dim() != 2 || weight.dim() != 2 || hidden.size(1) != weight.size(1) || hidden.size(0) < 1) {
    misuse("linear_cross_entropy: hidden {}, weight {}: expected [N, D] and [V, D] with N >= 1",
           fmt::streamed(hidden.sizes()), fmt::streamed(weight.sizes()));
  }
  if (targets.dim() != 1 || targets.size(0) != hidden.size(0) || targets.scalar_type() != torch::kInt64) {
    misuse("linear_cross_entropy: targets are {} {}, expected int64 [{}]", fmt::streamed(targets.dtype()),
           fmt::streamed(targets.sizes()), hidden.size(0));
  }
  if (rows < 0) misuse("linear_cross_entropy: rows = {}, expected at least 1, or 0 to choose", rows);
  if ((targets.lt(0).logical_or(targets.ge(weight.size(0))).logical_and(targets.ne(ignored))).any().item<bool>()) {
    misuse("linear_cross_entropy: a target is outside 0..{} and not {}, which is ignored", weight.size(0) - 1, ignored);
  }
}

/// Chunks of a million logits, but not so few rows that the weight's gradient is read more often than its products
/// need.
int64_t chosen_rows(int64_t vocabulary) {
  return std::max<int64_t>(256, (1 << 20) / std::max<int64_t>(1, vocabulary));
}

}  // namespace

Tensor linear_cross_entropy(const Tensor& hidden, const Tensor& weight, const Tensor& targets, int64_t ignored,
                            int64_t rows) {
  check(hidden, weight, targets, ignored, rows);
  if (rows == 0) rows = fused_enabled() ? chosen_rows(weight.size(0)) : hidden.size(0);
  if (rows >= hidden.size(0)) return reference(hidden, weight, targets, ignored);
  if (wants_gradient({hidden, weight})) return ChunkedLoss::apply(hidden, weight, targets, ignored, rows);
  return in_chunks(hidden, weight, targets, ignored, rows, /*gradient=*/false).loss;
}

TORCH_LIBRARY_FRAGMENT(seqloom, m) {
  define(m,
         "linear_cross_entropy(Tensor hidden, Tensor weight, Tensor targets, int ignored=-100, int rows=0) -> Tensor",
         &linear_cross_entropy, {.lower_in_autocast = true});
}

}  // namespace seqloom::ops
