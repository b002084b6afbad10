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
        sequences(sequences_of(in.q, in.offsets, kGlaChunk)),
        kept({0}) {
    for (const Sequence& s : sequences) kept.push_back(kept.back() + std::max<int64_t>(s.chunks - 1, 0));
  }
  int64_t heads, keys, values, padded_keys, padded_values;
  std::vector<Sequence> sequences;

  std::vector<int64_t> kept;  // states between chunks of one head of the sequences before each, and of all

  int64_t count() const { return static_cast<int64_t>(sequences.size()); }
  int64_t state_size() const { return padded_keys * padded_values; }
  /// Where the states of head h of sequence b begin that are kept between its chunks.
  int64_t kept_at(int64_t b, int64_t h) const { return (kept[b] * heads + h * (kept[b + 1] - kept[b])) * state_size(); }
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
  if (s.padded_keys == s.keys && s.padded_values == s.values) return state.clone(at::MemoryFormat::Contiguous);
  Tensor result = torch::zeros({s.count(), s.heads, s.padded_keys, s.padded_values}, state.options());
  result.narrow(2, 0, s.keys).narrow(3, 0, s.values).copy_(state);
  return result;
}

Tensor without_padding(const Tensor& state, const Sizes& s) {
  return state.narrow(2, 0, s.keys).narrow(3, 0, s.values).contiguous();
}

/// Head h of sequence b in t [S, H, padded K, padded V]; null of an undefined tensor.
float* head_in(const Tensor& t, const Sizes& s, int64_t b, int64_t h) {
  return t.defined() ? t.mutable_data_ptr<float>() + (b * s.heads + h) * s.state_size() : nullptr;
}

}  // namespace

GlaOutputs gated_linear_attention_forward(const GlaInputs& in, bool keep_checkpoints) {
  const Sizes s(in);
  const auto options = in.q.options().dtype(torch::kFloat32);
  GlaOutputs out;
  out.o = torch::empty(in.v.sizes(), in.v.options());
  const int64_t kept = keep_checkpoints ? s.heads * s.kept.back() : 0;
  out.checkpoints = torch::empty({kept, s.padded_keys, s.padded_values}, options);
  out.last = in.state.defined() ? padded_state(in.state, s)
                                : torch::empty({s.count(), s.heads, s.padded_keys, s.padded_values}, options);
  const auto make = [&](int64_t b, int64_t h) {
    return GlaForward{result_of(out.o, s.sequences[b], h), head_in(out.last, s, b, h), !in.state.defined(),
                      keep_checkpoints, out.checkpoints.mutable_data_ptr<float>() + s.kept_at(b, h)};
  };
  run_heads<GlaForward>(in, s, make, gla_forward_heads);
  out.state = without_padding(out.last, s);
  return out;
}

GlaGradients gated_linear_attention_backward(const GlaInputs& in, const Tensor& checkpoints, const Tensor& last,
                                             const Tensor& d_o, const Tensor& d_state, bool with_initial) {
  const Sizes s(in);
  const auto like = [](const Tensor& t) { return t.defined() ? torch::empty(t.sizes(), t.options()) : Tensor(); };
  GlaGradients g{like(in.q), like(in.k), like(in.v), like(in.gate), Tensor()};
  const Tensor initial = in.state.defined() ? padded_state(in.state, s) : Tensor();
  if (d_state.defined()) {
    g.state = padded_state(d_state, s);
  } else if (with_initial) {
    g.state = torch::zeros_like(initial);
  }
  const auto make = [&](int64_t b, int64_t h) {
    return GlaBackward{rows_of(d_o, s.sequences[b], h),
                       head_in(initial, s, b, h),
                       checkpoints.const_data_ptr<float>() + s.kept_at(b, h),
                       head_in(last, s, b, h),
                       head_in(g.state, s, b, h),
                       with_initial,
                       result_of(g.q, s.sequences[b], h),
                       result_of(g.k, s.sequences[b], h),
                       result_of(g.v, s.sequences[b], h),
                       result_of(g.gate, s.sequences[b], h)};
  };
  run_heads<GlaBackward>(in, s, make, gla_backward_heads);
  g.state = with_initial ? without_padding(g.state, s) : Tensor();
  return g;
}

}  // namespace seqloom::ops::cpu
