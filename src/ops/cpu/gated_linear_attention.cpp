#include "ops/cpu/gated_linear_attention.h"

#include <algorithm>

#include "ops/cpu/gated_linear_attention_rows.h"
#include "ops/cpu/heads.h"

namespace seqloom::ops::cpu {
namespace {

using torch::Tensor;

constexpr int64_t kLanePad = 16;

int64_t padded_to_lanes(int64_t size) {
  return (size + kLanePad - 1) / kLanePad * kLanePad;
}

struct Sizes {
  explicit Sizes(const GlaInputs& in)
      : heads(in.q.size(2)),
        keys(in.q.size(3)),
        values(in.v.size(3)),
        padded_keys(padded_to_lanes(keys)),
        padded_values(padded_to_lanes(values)),
        sequences(sequences_of(in.q, in.offsets, kGlaChunk)) {}
  int64_t heads, keys, values, padded_keys, padded_values;
  std::vector<Sequence> sequences;

  int64_t count() const { return static_cast<int64_t>(sequences.size()); }
  int64_t state_size() const { return padded_keys * padded_values; }
  /// States that are kept of one head of all sequences: before each chunk and behind the last one.
  int64_t kept_states() const { return sequences.back().chunks_before + sequences.back().chunks + count(); }
  /// Where those of head h of sequence b begin.
  int64_t kept_at(int64_t b, int64_t h) const {
    const Sequence& s = sequences[b];
    return ((s.chunks_before + b) * heads + h * (s.chunks + 1)) * state_size();
  }
};

GlaHead head_of(const GlaInputs& in, const Sizes& s, int64_t b, int64_t h) {
  return {rows_of(in.q, s.sequences[b], h),
          rows_of(in.k, s.sequences[b], h),
          rows_of(in.v, s.sequences[b], h),
          rows_of(in.gate, s.sequences[b], h),
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
  for_heads<GlaHead, Out>(s.sequences, s.heads, kHeadsTogether, head, make, work);
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
    return GlaForward{result_of(out.o, s.sequences[b], h), state.mutable_data_ptr<float>() + at * s.state_size(),
                      checkpoints};
  };
  run_heads<GlaForward>(in, s, make, gla_forward_heads);
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
    return GlaBackward{rows_of(d_o, s.sequences[b], h),
                       checkpoints.const_data_ptr<float>() + s.kept_at(b, h),
                       g.state.mutable_data_ptr<float>() + at * s.state_size(),
                       result_of(g.q, s.sequences[b], h),
                       result_of(g.k, s.sequences[b], h),
                       result_of(g.v, s.sequences[b], h),
                       result_of(g.gate, s.sequences[b], h)};
  };
  run_heads<GlaBackward>(in, s, make, gla_backward_heads);
  g.state = without_padding(g.state, s);
  return g;
}

}  // namespace seqloom::ops::cpu
