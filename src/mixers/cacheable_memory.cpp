#include "mixers/cacheable_memory.h"

#include <algorithm>
#include <cmath>

#include "ops/chunks.h"
#include "ops/precision.h"

namespace seqloom {
namespace {

/// A finite logarithm of a gate, e^x of which is 0 for a gate of 0.
double log_of(double gate) {
  return std::log(std::max(gate, 1e-300));
}

}  // namespace

using torch::Tensor;

LinearCell::LinearCell(int64_t heads, int64_t width, double retain, double beta, double lam)
    : heads_(heads), width_(width), retain_(retain), beta_(beta), lam_(lam) {}

MemoryState LinearCell::initial(int64_t batch, const torch::TensorOptions& options) const {
  MemoryState state{{torch::zeros({batch, heads_, width_, width_}, options)}, {}};
  if (beta_ != 0) state.extra.assign(2, torch::zeros({batch, heads_, width_}, options));
  return state;
}

/// retain^exponents, 0 where an exponent is negative.
Tensor LinearCell::powers(const Tensor& exponents, const torch::TensorOptions& options) const {
  return torch::pow(retain_, exponents.clamp_min(0).to(torch::kFloat64))
      .masked_fill(exponents.lt(0), 0)
      .to(options.dtype());
}

SegmentReads LinearCell::read(const Segments& s, const MemoryState& start, bool continued, bool) const {
  const auto options = s.q.options().requires_grad(false);
  const Tensor place = s.real.cumsum(-1).unsqueeze(1);                // [B, 1, S, c], 1 for the first token
  const Tensor total = place.select(-1, place.size(-1) - 1);          // [B, 1, S]
  const Tensor distance = place.unsqueeze(-1) - place.unsqueeze(-2);  // [B, 1, S, c, c]
  const Tensor causal = s.real.unsqueeze(1).unsqueeze(-2);            // of the token that is read
  const auto weights = [&](const Tensor& steps) {
    const Tensor own = powers(steps, options) * lam_;
    return beta_ == 0 ? own : own + powers(steps - 1, options) * beta_;
  };
  // inside the segments
  const int64_t c = s.q.size(3);
  const Tensor later = torch::ones({c, c}, options.dtype(torch::kBool)).triu(1);
  const Tensor inside = (weights(distance) * causal).masked_fill(later, 0);
  Tensor online = torch::matmul(inside * torch::matmul(s.q, s.k.transpose(-1, -2)), s.v);
  Tensor added = torch::matmul((s.v * weights(total.unsqueeze(-1) - place).unsqueeze(-1)).transpose(-1, -2), s.k);

  SegmentReads result;
  if (beta_ != 0) {  // the token before a segment, which is not in the segment's first weights with beta yet
    const auto before = [&](const Tensor& tokens, const Tensor& first) {
      const Tensor others = continued ? tokens.narrow(2, 0, s.count() - 1).select(3, c - 1)
                                      : torch::zeros_like(tokens.narrow(2, 0, s.count() - 1).select(3, 0));
      return torch::cat({first.unsqueeze(2), others}, 2);  // [B, H, S, d]
    };
    const Tensor k = before(s.k, start.extra[0]), v = before(s.v, start.extra[1]);
    const Tensor fading = (powers(place - 1, options) * beta_).unsqueeze(-1);
    online = online + torch::matmul(s.q, k.unsqueeze(-1)) * v.unsqueeze(-2) * fading;
    added =
        added + (powers(total - 1, options) * beta_).unsqueeze(-1).unsqueeze(-1) * v.unsqueeze(-1) * k.unsqueeze(-2);
    const Tensor any = total.gt(0).unsqueeze(-1);
    const Tensor at = (s.real.to(torch::kInt64) * torch::arange(1, c + 1, options.dtype(torch::kInt64))).argmax(-1);
    const Tensor index = at.view({s.batch(), 1, s.count(), 1, 1}).expand({-1, heads_, -1, 1, width_});
    result.ends.extra = {torch::where(any, s.k.gather(3, index).squeeze(3), k),
                         torch::where(any, s.v.gather(3, index).squeeze(3), v)};
  }
  // from segment to segment
  const Tensor fade = powers(total, options).unsqueeze(-1).unsqueeze(-1);
  Tensor before;
  if (continued || s.count() == 1) {
    before = std::get<0>(ops::scan_chunk_states(fade.expand_as(added), added, start.weights[0]));
  } else {
    before = torch::cat({start.weights[0].unsqueeze(2), torch::zeros_like(added.narrow(2, 1, s.count() - 1))}, 2);
  }
  result.ends.weights = {fade * before + added};
  result.online = online + powers(place, options).unsqueeze(-1) * torch::matmul(s.q, before.transpose(-1, -2));
  return result;
}

Tensor LinearCell::recall(const Tensor& q, const std::vector<Tensor>& caches, const Tensor& gates) const {
  const Tensor stacked = caches[0].transpose(-1, -2).flatten(2, 3);            // [B, H, N K, V]
  const Tensor queries = (gates.unsqueeze(-1) * q.unsqueeze(-2)).flatten(-2);  // [B, H, n, N K]
  return torch::matmul(queries, stacked);
}

Tensor LinearCell::recall_mixed(const Tensor& q, const std::vector<Tensor>& caches, const Tensor& gates,
                                const std::vector<Tensor>& own, const Tensor& own_gate) const {
  const Tensor read = torch::matmul(own[0], q.unsqueeze(-1)).squeeze(-1);
  return own_gate.unsqueeze(-1) * read + recall(q, caches, gates);
}

DeepCell::DeepCell(std::vector<Tensor> initial, bool hebbian, bool residual, double retain, double momentum, double lr)
    : initial_(std::move(initial)), retain_(retain), momentum_(momentum), lr_(lr) {
  rule_.hebbian = hebbian;
  rule_.residual = residual;
}

MemoryState DeepCell::initial(int64_t batch, const torch::TensorOptions& options) const {
  MemoryState state;
  for (const Tensor& weights : initial_) {
    state.weights.push_back(weights.to(options.dtype()).unsqueeze(0).repeat({batch, 1, 1, 1}));
    state.extra.push_back(torch::zeros_like(state.weights.back()));
  }
  return state;
}

SegmentReads DeepCell::read(const Segments& s, const MemoryState& start, bool continued, bool per_token) const {
  const int64_t B = s.batch(), S = s.count(), c = s.q.size(3);
  // Segments that begin anew are rows of their own; those that continue are one run.
  const int64_t rows = continued ? B : B * S, tokens = continued ? S * c : c;
  const auto as_rows = [&](const Tensor& x) {  // [B, H, S, c, d]
    return continued ? x.flatten(2, 3) : x.transpose(1, 2).flatten(0, 1);
  };
  const auto as_segments = [&](const Tensor& x) {  // [rows, H, tokens, ...]
    return continued ? x.unflatten(2, {S, c}) : x.unflatten(0, {B, S}).transpose(1, 2);
  };
  ops::DeepMemoryTokens t;
  t.q = as_rows(s.q);
  t.k = as_rows(s.k);
  t.v = as_rows(s.v);
  if (!s.dense) t.real = s.real.reshape({rows, tokens});
  t.omega = torch::ones({rows, s.heads(), tokens}, s.q.options().requires_grad(false));
  t.log_retain = torch::full_like(t.omega, log_of(retain_));
  t.log_momentum = torch::full_like(t.omega, log_of(momentum_));
  t.lr = torch::full_like(t.omega, lr_);

  const MemoryState fresh = initial(B, s.q.options().requires_grad(false));
  const auto starts = [&](const Tensor& first, const Tensor& other) {
    if (continued || S == 1) return first;
    return torch::cat({first.unsqueeze(1), other.unsqueeze(1).expand({-1, S - 1, -1, -1, -1})}, 1).flatten(0, 1);
  };
  ops::DeepMemoryState state;
  for (size_t l = 0; l < initial_.size(); ++l) {
    state.memory.push_back(starts(start.weights[l], fresh.weights[l]));
    state.momentum.push_back(starts(start.extra[l], fresh.extra[l]));
  }
  state.chunk_start = state.memory;
  std::vector<ops::DeepMemoryState> after;
  SegmentReads result;
  result.online = as_segments(ops::deep_memory(rule_, t, 0, state, &after));
  const auto over_time = [&](std::vector<Tensor> ops::DeepMemoryState::*part, size_t l, int64_t stride) {
    std::vector<Tensor> chosen;
    for (int64_t i = stride - 1; i < tokens; i += stride) chosen.push_back((after[static_cast<size_t>(i)].*part)[l]);
    return torch::stack(chosen, 2);
  };
  const auto at_ends = [&](const Tensor& x) {  // [rows, H, 1 or S, ...]
    return continued ? x : x.squeeze(2).unflatten(0, {B, S}).transpose(1, 2);
  };
  for (size_t l = 0; l < initial_.size(); ++l) {
    result.ends.weights.push_back(at_ends(over_time(&ops::DeepMemoryState::memory, l, c)));
    result.ends.extra.push_back(at_ends(over_time(&ops::DeepMemoryState::momentum, l, c)));
    if (per_token) result.per_token.push_back(as_segments(over_time(&ops::DeepMemoryState::memory, l, 1)));
  }
  return result;
}

Tensor DeepCell::recall(const Tensor& q, const std::vector<Tensor>& caches, const Tensor& gates) const {
  const auto layers = static_cast<int64_t>(caches.size());
  const Tensor reads = ops::through_network(layers, q.unsqueeze(2), rule_.residual, [&](size_t l, const Tensor& h) {
    return torch::matmul(h, caches[l].transpose(-1, -2));
  });  // [B, H, N, n, d]
  return (reads * gates.transpose(-1, -2).unsqueeze(-1)).sum(2);
}

Tensor DeepCell::recall_mixed(const Tensor& q, const std::vector<Tensor>& caches, const Tensor& gates,
                              const std::vector<Tensor>& own, const Tensor& own_gate) const {
  // a layer is linear in its weights, so that they need not be mixed for every token
  const auto product = [&](size_t l, const Tensor& h) {
    const Tensor cached = torch::matmul(h.unsqueeze(2), caches[l].transpose(-1, -2));
    const Tensor mixed = (cached * gates.transpose(-1, -2).unsqueeze(-1)).sum(2);
    return mixed + own_gate.unsqueeze(-1) * torch::matmul(own[l], h.unsqueeze(-1)).squeeze(-1);
  };
  return ops::through_network(static_cast<int64_t>(caches.size()), q, rule_.residual, product);
}

}  // namespace seqloom
