#include "mixers/cacheable_memory.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "ops/chunks.h"
#include "ops/precision.h"

namespace seqloom {
namespace {

using torch::Tensor;

/// A finite logarithm of a gate, e^x of which is 0 for a gate of 0.
double log_of(double gate) {
  return std::log(std::max(gate, 1e-300));
}

/// What reads the rows [B S, ...] of one chunk after the other, for each of S segments.
std::vector<RunningReads> rows_by_segment(const RunningReads& chunks, int64_t B, int64_t S) {
  std::vector<RunningReads> result(static_cast<size_t>(S), RunningReads(chunks.size()));
  const auto deal = [&](const Tensor& rows, const auto& slot) {
    const auto pieces = rows.unflatten(0, {B, S}).unbind(1);
    for (size_t i = 0; i < pieces.size(); ++i) slot(i) = pieces[i];
  };
  for (size_t p = 0; p < chunks.size(); ++p) {
    for (const auto part : {&ops::ChunkReads::kept, &ops::ChunkReads::drift, &ops::ChunkReads::written}) {
      deal(chunks[p].*part, [&](size_t i) -> Tensor& { return result[i][p].*part; });
    }
    for (const auto part :
         {&ops::ChunkReads::memory, &ops::ChunkReads::momentum, &ops::ChunkReads::inputs, &ops::ChunkReads::errors}) {
      for (const Tensor& rows : chunks[p].*part) {
        deal(rows, [&](size_t i) -> Tensor& { return (result[i][p].*part).emplace_back(); });
      }
    }
  }
  return result;
}

/// W_l h of the running weights, h [B, H, n, in].
Tensor own_product(const RunningReads& chunks, size_t l, const Tensor& h) {
  std::vector<Tensor> products;
  int64_t begin = 0;
  for (const auto& chunk : chunks) {
    const int64_t n = chunk.kept.size(-1);
    products.push_back(chunk.product(l, h.narrow(2, begin, n)));
    begin += n;
  }
  return torch::cat(products, 2);
}

}  // namespace

Tensor CacheableMemory::recall_mixed(const Tensor&, const std::vector<Tensor>&, const Tensor&, const RunningReads&,
                                     const Tensor&) const {
  fail("memory_caching: weights are mixed where the read is not linear in them");
}

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

SegmentReads LinearCell::read(const Segments& s, const MemoryState& start, bool continued) const {
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

DeepCell::DeepCell(std::vector<Tensor> initial, const Rule& rule) : initial_(std::move(initial)), rule_(rule) {}

MemoryState DeepCell::initial(int64_t batch, const torch::TensorOptions& options) const {
  MemoryState state;
  for (const Tensor& weights : initial_) {
    state.weights.push_back(weights.to(options.dtype()).unsqueeze(0).repeat({batch, 1, 1, 1}));
    state.extra.push_back(torch::zeros_like(state.weights.back()));
  }
  if (rule_.chunk > 1) state.extra.insert(state.extra.end(), state.weights.begin(), state.weights.end());
  return state;
}

SegmentReads DeepCell::read(const Segments& s, const MemoryState& start, bool continued) const {
  if (s.count() == 1) return read_one(s, start);
  return continued ? read_in_turn(s, start) : read_at_once(s, start);
}

SegmentReads DeepCell::read_one(const Segments& s, const MemoryState& start) const {
  ops::DeepMemoryRule rule;
  rule.hebbian = rule_.hebbian;
  rule.residual = rule_.residual;
  rule.chunk = rule_.chunk;
  ops::DeepMemoryTokens t;
  t.q = s.q.squeeze(2);
  t.k = s.k.squeeze(2);
  t.v = s.v.squeeze(2);
  if (!s.dense) t.real = s.real.squeeze(1);
  t.omega = torch::ones(t.q.sizes().slice(0, 3), t.q.options().requires_grad(false));
  t.log_retain = torch::full_like(t.omega, log_of(rule_.retain));
  t.log_momentum = torch::full_like(t.omega, log_of(rule_.momentum));
  t.lr = torch::full_like(t.omega, rule_.lr);

  const auto layers = static_cast<std::ptrdiff_t>(initial_.size());
  const auto extra = start.extra.begin();
  ops::DeepMemoryState state{start.weights, {extra, extra + layers}, {extra + layers, start.extra.end()}};
  if (rule_.chunk == 1) state.chunk_start = state.memory;
  SegmentReads result;
  result.running.emplace_back();
  result.online = ops::deep_memory(rule, t, s.phase % rule.chunk, state, &result.running[0]).unsqueeze(2);
  const auto put = [](const std::vector<Tensor>& weights, std::vector<Tensor>& where) {
    for (const Tensor& w : weights) where.push_back(w.unsqueeze(2));
  };
  put(state.memory, result.ends.weights);
  put(state.momentum, result.ends.extra);
  if (rule_.chunk > 1) put(state.chunk_start, result.ends.extra);
  return result;
}

/// Each segment from where the one before it ended.
SegmentReads DeepCell::read_in_turn(const Segments& s, const MemoryState& start) const {
  SegmentReads result;
  MemoryState now = start;
  std::vector<Tensor> online;
  std::vector<MemoryState> ends;
  const auto q = s.q.split(1, 2), k = s.k.split(1, 2), v = s.v.split(1, 2), real = s.real.split(1, 1);
  for (size_t i = 0; i < q.size(); ++i) {
    SegmentReads one = read_one({q[i], k[i], v[i], real[i], s.dense, i == 0 ? s.phase : 0}, now);
    online.push_back(one.online);
    result.running.push_back(std::move(one.running[0]));
    ends.push_back(std::move(one.ends));
    now = ends.back();
    for (auto* part : {&now.weights, &now.extra}) {
      for (Tensor& t : *part) t = t.squeeze(2);
    }
  }
  result.online = torch::cat(online, 2);
  const auto joined = [&](std::vector<Tensor> MemoryState::*part) {
    std::vector<Tensor> all;
    for (size_t l = 0; l < (now.*part).size(); ++l) {
      std::vector<Tensor> pieces;
      for (const MemoryState& end : ends) pieces.push_back((end.*part)[l]);
      all.push_back(torch::cat(pieces, 2));
    }
    return all;
  };
  result.ends = {joined(&MemoryState::weights), joined(&MemoryState::extra)};
  return result;
}

/// Segments that begin anew, as rows of one.
SegmentReads DeepCell::read_at_once(const Segments& s, const MemoryState& start) const {
  const int64_t B = s.batch(), S = s.count();
  const auto as_rows = [](const Tensor& x) { return x.transpose(1, 2).flatten(0, 1); };  // of [B, H, S, ...]
  const auto as_segments = [&](const Tensor& x) { return x.unflatten(0, {B, S}).transpose(1, 2); };  // of [B S, H, ...]
  const MemoryState fresh = initial(B, s.q.options().requires_grad(false));
  const auto starts = [&](const std::vector<Tensor>& first, const std::vector<Tensor>& others) {
    std::vector<Tensor> all;
    for (size_t l = 0; l < first.size(); ++l) {
      const Tensor later = others[l].unsqueeze(1).expand({-1, S - 1, -1, -1, -1});
      all.push_back(torch::cat({first[l].unsqueeze(1), later}, 1).flatten(0, 1));
    }
    return all;
  };
  SegmentReads one = read_one({as_rows(s.q).unsqueeze(2), as_rows(s.k).unsqueeze(2), as_rows(s.v).unsqueeze(2),
                               s.real.flatten(0, 1).unsqueeze(1), s.dense, s.phase},
                              {starts(start.weights, fresh.weights), starts(start.extra, fresh.extra)});
  SegmentReads result;
  result.online = as_segments(one.online.squeeze(2));
  const auto ends = [&](const std::vector<Tensor>& rows) {
    std::vector<Tensor> all;
    for (const Tensor& t : rows) all.push_back(as_segments(t.squeeze(2)));
    return all;
  };
  result.ends = {ends(one.ends.weights), ends(one.ends.extra)};
  result.running = rows_by_segment(one.running[0], B, S);
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
                              const RunningReads& own, const Tensor& own_gate) const {
  // a layer is linear in its weights, so that they need not be mixed for every token
  const auto product = [&](size_t l, const Tensor& h) {
    const Tensor cached = torch::matmul(h.unsqueeze(2), caches[l].transpose(-1, -2));
    const Tensor mixed = (cached * gates.transpose(-1, -2).unsqueeze(-1)).sum(2);
    return mixed + own_gate.unsqueeze(-1) * own_product(own, l, h);
  };
  return ops::through_network(static_cast<int64_t>(caches.size()), q, rule_.residual, product);
}

}  // namespace seqloom
