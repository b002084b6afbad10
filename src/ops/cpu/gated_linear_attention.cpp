#include "ops/cpu/gated_linear_attention.h"

#include <algorithm>

#include "ops/cpu/gated_linear_attention_rows.h"
#include "ops/cpu/heads.h"

namespace seqloom::ops::cpu {
namespace {

using torch::Tensor;

constexpr int64_t kLanePad = 16;
/// Below this many tokens the recurrence itself takes less than a chunk's set-up.
constexpr int64_t kFewTokens = 8;

int64_t padded_to_lanes(int64_t size) {
  return (size + kLanePad - 1) / kLanePad * kLanePad;
}

/// A row of a batch, or a part of one.
struct Sequence {
  int64_t row, first, tokens;
  int64_t states_before;  // checkpoints of one head of all sequences before it

  int64_t states() const {
    constexpr auto kChunk = static_cast<int64_t>(kGlaChunk);
    return (tokens + kChunk - 1) / kChunk + 1;
  }
};

std::vector<Sequence> sequences_of(const GlaInputs& in) {
  const bool packed = !in.offsets.empty();
  const int64_t count = packed ? static_cast<int64_t>(in.offsets.size()) - 1 : in.q.size(0);
  std::vector<Sequence> sequences;
  int64_t states = 0;
  for (int64_t s = 0; s < count; ++s) {
    const int64_t first = packed ? in.offsets[s] : 0, last = packed ? in.offsets[s + 1] : in.q.size(1);
    sequences.push_back({packed ? 0 : s, first, last - first, states});
    states += sequences.back().states();
  }
  return sequences;
}

struct Sizes {
  explicit Sizes(const GlaInputs& in)
      : heads(in.q.size(2)),
        keys(in.q.size(3)),
        values(in.v.size(3)),
        padded_keys(padded_to_lanes(keys)),
        padded_values(padded_to_lanes(values)),
        sequences(sequences_of(in)) {
    for (const Sequence& s : sequences) longest = std::max(longest, s.tokens);
  }
  int64_t heads, keys, values, padded_keys, padded_values, longest = 0;
  std::vector<Sequence> sequences;

  int64_t count() const { return static_cast<int64_t>(sequences.size()); }
  int64_t state_size() const { return padded_keys * padded_values; }
  /// States that are kept of one head of all sequences.
  int64_t kept_states() const { return sequences.back().states_before + sequences.back().states(); }
  /// Where those of head h of sequence b begin.
  int64_t kept_at(int64_t b, int64_t h) const {
    return (sequences[b].states_before * heads + h * sequences[b].states()) * state_size();
  }
  HeadRows rows(const Tensor& t, int64_t b, int64_t h) const {
    return from_token(rows_of(t, sequences[b].row, h), sequences[b].first);
  }
  HeadResult result(const Tensor& t, int64_t b, int64_t h) const {
    return from_token(result_of(t, sequences[b].row, h), sequences[b].first);
  }
};

GlaHead head_of(const GlaInputs& in, const Sizes& s, int64_t b, int64_t h) {
  return {s.rows(in.q, b, h),
          s.rows(in.k, b, h),
          s.rows(in.v, b, h),
          s.rows(in.gate, b, h),
          in.gate.defined() && in.gate.dim() == 4,
          static_cast<size_t>(s.sequences[b].tokens),
          static_cast<size_t>(s.keys),
          static_cast<size_t>(s.values),
          static_cast<float>(in.scale)};
}

/// Heads that one thread takes through a chunk before the next chunk: their states share the second cache.
constexpr int64_t kHeadsTogether = 16;

/// make(b, h) gives where head h of sequence b writes.
template <typename Out, typename Make>
void run_heads(const GlaInputs& in, const Sizes& s, Make make, void (*work)(const GlaHead*, const Out*, size_t)) {
  const auto head = [&](int64_t b, int64_t h) { return head_of(in, s, b, h); };
  for_heads<GlaHead, Out>(s.count(), s.heads, kHeadsTogether, head, make, work);
}

/// [S, H, K, V] -> a copy of its own, K and V padded with zeros.
Tensor padded_state(const Tensor& state, const Sizes& s) {
  Tensor result = torch::zeros({s.count(), s.heads, s.padded_keys, s.padded_values}, state.options());
  result.narrow(2, 0, s.keys).narrow(3, 0, s.values).copy_(state);
  return result;
}

Tensor without_padding(const Tensor& state, const Sizes& s) {
  return state.narrow(2, 0, s.keys).narrow(3, 0, s.values).contiguous();
}

}  // namespace

GlaOutputs gated_linear_attention_forward(const GlaInputs& in, bool keep_checkpoints) {
  const Sizes s(in);
  GlaOutputs out;
  out.o = torch::empty(in.v.sizes(), in.v.options());
  if (keep_checkpoints) {
    out.checkpoints = torch::empty({s.heads * s.kept_states(), s.padded_keys, s.padded_values}, in.state.options());
  }
  const Tensor state = padded_state(in.state, s);
  const auto make = [&](int64_t b, int64_t h) {
    const int64_t at = b * s.heads + h;
    float* checkpoints =
        out.checkpoints.defined() ? out.checkpoints.mutable_data_ptr<float>() + s.kept_at(b, h) : nullptr;
    return GlaForward{s.result(out.o, b, h), state.mutable_data_ptr<float>() + at * s.state_size(), checkpoints};
  };
  run_heads<GlaForward>(in, s, make,
                        s.longest < kFewTokens && !keep_checkpoints ? gla_recurrent_heads : gla_forward_heads);
  out.state = without_padding(state, s);
  return out;
}

GlaGradients gated_linear_attention_backward(const GlaInputs& in, const Tensor& checkpoints, const Tensor& d_o,
                                             const Tensor& d_state) {
  const Sizes s(in);
  const auto like = [](const Tensor& t) { return t.defined() ? torch::empty(t.sizes(), t.options()) : Tensor(); };
  GlaGradients g{like(in.q), like(in.k), like(in.v), like(in.gate), padded_state(d_state, s)};
  const auto make = [&](int64_t b, int64_t h) {
    const int64_t at = b * s.heads + h;
    return GlaBackward{s.rows(d_o, b, h),
                       checkpoints.const_data_ptr<float>() + s.kept_at(b, h),
                       g.state.mutable_data_ptr<float>() + at * s.state_size(),
                       s.result(g.q, b, h),
                       s.result(g.k, b, h),
                       s.result(g.v, b, h),
                       s.result(g.gate, b, h)};
  };
  run_heads<GlaBackward>(in, s, make, gla_backward_heads);
  g.state = without_padding(g.state, s);
  return g;
}

}  // namespace seqloom::ops::cpu
