#include "ops/deep_memory.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/chunks.h"
#include "ops/orthogonal_momenta.h"
#include "ops/recompute.h"

namespace seqloom::ops {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Optimizer = DeepMemoryRule::Optimizer;

/// What one chunk of n tokens needs; m = n + window - 1. Unrolled, the scans inside a chunk are
///   S_t = carried_t S_0 + sum_i pushed_ti g_i
///   M_t = kept_t M_0 + drift_t S_0 + sum_i written_ti g_i                      (kDescent, kMomentum)
///   M_t = kept_t M_0 + sum_s stepped_ts newton_schulz(S_s)                     (kMuon)
/// with g_i the gradient of token i's own loss. A span of P equal chunks has P as a third dimension.
struct Chunk {
  Tensor q, k, v, omega;            // [B, H, n, K], [B, H, m, K], [B, H, m, V], [B, H, m]
  Tensor kept, drift, carried;      // [B, H, n]
  Tensor pushed, written, stepped;  // [B, H, n, m], [B, H, n, m], [B, H, n, n]
};

constexpr Tensor Chunk::*kParts[] = {&Chunk::q,     &Chunk::k,       &Chunk::v,      &Chunk::omega,   &Chunk::kept,
                                     &Chunk::drift, &Chunk::carried, &Chunk::pushed, &Chunk::written, &Chunk::stepped};

/// gelu(z) and its derivative, both differentiable in z.
class GeluWithSlope : public torch::autograd::Function<GeluWithSlope> {
 public:
  static variable_list forward(AutogradContext* context, const Tensor& z) {
    const Tensor below = torch::erfc(z * -std::sqrt(0.5)) * 0.5;
    const Tensor slope = torch::addcmul(below, z, density(z));
    context->save_for_backward({z, slope});
    return {z * below, slope};
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const Tensor &z = saved[0], &slope = saved[1];
    return {gradients[0] * slope + gradients[1] * density(z) * (2 - z.square())};
  }

 private:
  static Tensor density(const Tensor& z) { return (z.square() * -0.5).exp() * (1 / std::sqrt(2 * M_PI)); }
};

/// The loss of every token at the given weights, backwards: g_i of layer l is errors[l]_i inputs[l]_i^T.
struct Gradients {
  std::vector<Tensor> inputs, errors;  // [B, H, m, in], [B, H, m, out]
};

Gradients token_gradients(const DeepMemoryRule& rule, const Chunk& c, const std::vector<Tensor>& weights) {
  const size_t layers = weights.size();
  Gradients g{{c.k}, std::vector<Tensor>(layers)};
  std::vector<Tensor> slopes;
  for (size_t l = 0; l + 1 < layers; ++l) {
    const auto gelu = GeluWithSlope::apply(torch::matmul(g.inputs[l], weights[l].transpose(-1, -2)));
    g.inputs.push_back(gelu[0]);
    slopes.push_back(gelu[1]);
  }
  Tensor error = -c.v;
  if (!rule.hebbian) {
    const Tensor out = torch::matmul(g.inputs.back(), weights.back().transpose(-1, -2));
    error = 2 * ((rule.residual ? out + c.k : out) - c.v);
  }
  error = error * c.omega.unsqueeze(-1);
  if (rule.mean_loss) error = error / c.v.size(-1);
  for (size_t l = layers; l-- > 0;) {
    g.errors[l] = error;
    if (l > 0) error = torch::matmul(error, weights[l]) * slopes[l - 1];
  }
  return g;
}

/// [.., n] -> [.., 1, 1] of the last token.
Tensor last_of(const Tensor& coefficients) {
  return coefficients.select(-1, coefficients.size(-1) - 1).unsqueeze(-1).unsqueeze(-1);
}

/// sum_i c_i g_i with the coefficients of the last token, [B, H, out, in].
Tensor summed(const Tensor& coefficients, const Gradients& g, size_t layer) {
  const Tensor last = coefficients.select(-2, coefficients.size(-2) - 1).unsqueeze(-1);
  return torch::matmul((g.errors[layer] * last).transpose(-1, -2), g.inputs[layer]);
}

/// kDescent and kMomentum: a read M_t h is two reads of the chunk's first weights and linear attention over the g_i.
Tensor advance_unformed(const DeepMemoryRule& rule, const Chunk& c, DeepMemoryState& state,
                        std::vector<ChunkReads>* all_reads) {
  const Gradients g = token_gradients(rule, c, state.chunk_start);
  const ChunkReads reads{c.kept, c.drift, c.written, state.memory, state.momentum, g.inputs, g.errors};
  const auto read = [&](size_t l, const Tensor& h) { return reads.product(l, h); };
  const Tensor y = through_network(static_cast<int64_t>(state.memory.size()), c.q, rule.residual, read);
  for (size_t l = 0; l < state.memory.size(); ++l) {
    Tensor memory = last_of(c.kept) * state.memory[l] + summed(c.written, g, l);
    if (rule.has_momentum()) {
      memory = memory + last_of(c.drift) * state.momentum[l];
      state.momentum[l] = last_of(c.carried) * state.momentum[l] + summed(c.pushed, g, l);
    }
    state.memory[l] = memory;
  }
  if (all_reads != nullptr) all_reads->push_back(reads);
  return y;
}

/// kMuon: the same with orthogonalised momenta in place of the g_i.
Tensor advance_muon(const DeepMemoryRule& rule, const Chunk& c, DeepMemoryState& state) {
  const Gradients g = token_gradients(rule, c, state.chunk_start);
  std::vector<OrthogonalMomenta> steps;
  for (size_t l = 0; l < state.memory.size(); ++l) {
    steps.emplace_back(state.momentum[l], g.errors[l], g.inputs[l], c.carried, c.pushed, rule.ns_steps);
  }
  const auto read = [&](size_t l, const Tensor& h) {
    return c.kept.unsqueeze(-1) * torch::matmul(h, state.memory[l].transpose(-1, -2)) + steps[l].read(c.stepped, h);
  };
  const Tensor y = through_network(static_cast<int64_t>(state.memory.size()), c.q, rule.residual, read);
  const Tensor last = c.stepped.select(-2, c.stepped.size(-2) - 1);
  for (size_t l = 0; l < state.memory.size(); ++l) {
    state.memory[l] = last_of(c.kept) * state.memory[l] + steps[l].sum(last);
    state.momentum[l] = last_of(c.carried) * state.momentum[l] + summed(c.pushed, g, l);
  }
  return y;
}

/// advance_muon without keeping what it formed.
Tensor advance_muon_recomputed(const DeepMemoryRule& rule, const Chunk& chunk, DeepMemoryState& state) {
  std::vector<Tensor> inputs;
  for (const auto part : kParts) {
    if ((chunk.*part).defined()) inputs.push_back(chunk.*part);
  }
  for (const auto* weights : {&state.memory, &state.momentum, &state.chunk_start}) {
    inputs.insert(inputs.end(), weights->begin(), weights->end());
  }
  const size_t layers = state.memory.size();
  std::vector<bool> has;
  for (const auto part : kParts) has.push_back((chunk.*part).defined());
  const auto run = [rule, layers, has](const std::vector<Tensor>& all) {
    Chunk c;
    auto next = all.begin();
    for (size_t i = 0; i < has.size(); ++i) {
      if (has[i]) c.*kParts[i] = *next++;
    }
    const auto weights = [&] {
      next += static_cast<std::ptrdiff_t>(layers);
      return std::vector<Tensor>(next - static_cast<std::ptrdiff_t>(layers), next);
    };
    DeepMemoryState local;
    local.memory = weights();
    local.momentum = weights();
    local.chunk_start = weights();
    std::vector<Tensor> outputs = {advance_muon(rule, c, local)};
    outputs.insert(outputs.end(), local.memory.begin(), local.memory.end());
    outputs.insert(outputs.end(), local.momentum.begin(), local.momentum.end());
    return outputs;
  };
  const std::vector<Tensor> outputs = recomputed(run, inputs);
  for (size_t l = 0; l < layers; ++l) {
    state.memory[l] = outputs[1 + l];
    state.momentum[l] = outputs[1 + layers + l];
  }
  return outputs[0];
}

/// Products of gates, by logarithms: from the start to t inclusive [.., n], and over s < r <= t [.., n, n].
struct Decays {
  Tensor total, between;
};

Decays decays(const Tensor& log_gate) {
  const Tensor sums = cumulative_gates(log_gate, -1).sums;
  const int64_t n = log_gate.size(-1);
  const Tensor later = torch::ones({n, n}, log_gate.options().dtype(torch::kBool)).triu(1);
  const Tensor differences = sums.unsqueeze(-1) - sums.unsqueeze(-2);
  const auto type = log_gate.scalar_type();
  return {sums.exp().to(type), differences.masked_fill(later, -std::numeric_limits<double>::infinity()).exp().to(type)};
}

/// The coefficients of chunks of n tokens from their gates [B, H, P, n]; `real` is 1 or 0 there.
void unroll(const DeepMemoryRule& rule, const Tensor& log_retain, const Tensor& log_momentum, const Tensor& lr,
            const Tensor& real, Chunk& c) {
  const int64_t n = lr.size(-1), m = n + rule.window - 1;
  const Tensor window = torch::ones({n, m}, lr.options().requires_grad(false)).tril(rule.window - 1).triu();
  const Decays retained = decays(log_retain);
  c.kept = retained.total;
  if (rule.optimizer == Optimizer::kDescent) {
    c.written = torch::matmul(retained.between * -lr.unsqueeze(-2), window);
    return;
  }
  const Decays momentum = decays(log_momentum);
  c.carried = momentum.total;
  if (rule.optimizer == Optimizer::kMuon) {
    c.pushed = torch::matmul(momentum.between * real.unsqueeze(-2), window);
    c.stepped = retained.between * -lr.unsqueeze(-2);
    return;
  }
  const Tensor added = retained.between * real.unsqueeze(-2);  // what is not real does not add its momentum again
  c.pushed = torch::matmul(momentum.between * -lr.unsqueeze(-2), window);
  c.written = torch::matmul(added, c.pushed);
  c.drift = torch::matmul(added, c.carried.unsqueeze(-1)).squeeze(-1);
}

/// `chunks` chunks of n tokens from token `begin` on.
std::vector<Chunk> cut(const DeepMemoryRule& rule, const DeepMemoryTokens& t, int64_t begin, int64_t chunks,
                       int64_t n) {
  const auto own = [&](const Tensor& x) { return x.narrow(2, begin, chunks * n).unflatten(2, {chunks, n}); };
  const auto with_window = [&](const Tensor& x) {
    if (rule.window == 1) return own(x);
    const int64_t m = n + rule.window - 1;
    const Tensor windows = x.narrow(2, begin, chunks * n + rule.window - 1).unfold(2, m, n);
    return x.dim() == 4 ? windows.transpose(-1, -2) : windows;
  };
  Chunk span;
  span.q = own(t.q);
  span.k = with_window(t.k);
  span.v = with_window(t.v);
  span.omega = with_window(t.omega);
  const Tensor real = t.real.defined() ? own(t.real.unsqueeze(1).to(t.lr.scalar_type()))
                                       : torch::ones({1, 1, 1, n}, t.lr.options().requires_grad(false));
  unroll(rule, own(t.log_retain) * real, rule.has_momentum() ? own(t.log_momentum) * real : Tensor(), own(t.lr) * real,
         real, span);
  std::vector<Chunk> result(static_cast<size_t>(chunks));
  for (const auto part : kParts) {
    if (!(span.*part).defined()) continue;
    const auto pieces = (span.*part).unbind(2);
    for (size_t i = 0; i < result.size(); ++i) result[i].*part = pieces[i];
  }
  return result;
}

/// A chunk begins with the token in column `first`: from now on gradients are taken at the present weights.
void begin_chunk(const Tensor& real, int64_t first, DeepMemoryState& state) {
  if (!real.defined()) {
    state.chunk_start = state.memory;
    return;
  }
  const Tensor begins = real.select(1, first).view({-1, 1, 1, 1});
  for (size_t l = 0; l < state.memory.size(); ++l) {
    state.chunk_start[l] = torch::where(begins, state.memory[l], state.chunk_start[l]);
  }
}

}  // namespace

Tensor through_network(int64_t layers, const Tensor& z, bool residual,
                       const std::function<Tensor(size_t, const Tensor&)>& product) {
  Tensor h = z;
  for (int64_t l = 0; l < layers; ++l) {
    h = product(static_cast<size_t>(l), h);
    if (l + 1 < layers) h = torch::gelu(h);
  }
  return residual ? h + z : h;
}

Tensor ChunkReads::product(size_t l, const Tensor& h) const {
  Tensor z = kept.unsqueeze(-1) * torch::matmul(h, memory[l].transpose(-1, -2));
  if (!momentum.empty()) z = z + drift.unsqueeze(-1) * torch::matmul(h, momentum[l].transpose(-1, -2));
  return z + torch::matmul(written * torch::matmul(h, inputs[l].transpose(-1, -2)), errors[l]);
}

Tensor deep_memory(const DeepMemoryRule& rule, const DeepMemoryTokens& tokens, int64_t phase, DeepMemoryState& state,
                   std::vector<ChunkReads>* reads) {
  const int64_t count = tokens.q.size(2), head = std::min(count, (rule.chunk - phase) % rule.chunk);
  const int64_t whole = (count - head) / rule.chunk, tail = (count - head) % rule.chunk;
  struct Span {
    int64_t begin, chunks, n;
  };
  std::vector<Tensor> outputs;
  for (const auto& [begin, chunks, n] :
       {Span{0, head > 0, head}, {head, whole, rule.chunk}, {head + whole * rule.chunk, tail > 0, tail}}) {
    if (chunks == 0) continue;
    int64_t first = begin;
    for (const Chunk& chunk : cut(rule, tokens, begin, chunks, n)) {
      if (first >= head) begin_chunk(tokens.real, first, state);
      outputs.push_back(rule.optimizer == Optimizer::kMuon ? advance_muon_recomputed(rule, chunk, state)
                                                           : advance_unformed(rule, chunk, state, reads));
      first += n;
    }
  }
  return torch::cat(outputs, 2);
}

}  // namespace seqloom::ops
