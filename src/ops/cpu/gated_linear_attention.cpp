#include "ops/cpu/gated_linear_attention.h"

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

struct Sizes {
  explicit Sizes(const GlaInputs& in)
      : batch(in.q.size(0)),
        tokens(in.q.size(1)),
        heads(in.q.size(2)),
        keys(in.q.size(3)),
        values(in.v.size(3)),
        padded_keys(padded_to_lanes(keys)),
        padded_values(padded_to_lanes(values)),
        chunks((tokens + static_cast<int64_t>(kGlaChunk) - 1) / static_cast<int64_t>(kGlaChunk)) {}
  int64_t batch, tokens, heads, keys, values, padded_keys, padded_values, chunks;

  int64_t state_size() const { return padded_keys * padded_values; }
};

GlaHead head_of(const GlaInputs& in, const Sizes& s, int64_t b, int64_t h) {
  return {rows_of(in.q, b, h),
          rows_of(in.k, b, h),
          rows_of(in.v, b, h),
          rows_of(in.gate, b, h),
          in.gate.defined() && in.gate.dim() == 4,
          static_cast<size_t>(s.tokens),
          static_cast<size_t>(s.keys),
          static_cast<size_t>(s.values),
          static_cast<float>(in.scale)};
}

/// Heads that one thread takes through a chunk before the next chunk: their states share the second cache.
constexpr int64_t kHeadsTogether = 16;

/// make(b, h) gives where a head writes.
template <typename Out, typename Make>
void run_heads(const GlaInputs& in, const Sizes& s, Make make, void (*work)(const GlaHead*, const Out*, size_t)) {
  const auto head = [&](int64_t b, int64_t h) { return head_of(in, s, b, h); };
  for_heads<GlaHead, Out>(s.batch, s.heads, kHeadsTogether, head, make, work);
}

/// [B, H, K, V] -> a copy of its own, K and V padded with zeros.
Tensor padded_state(const Tensor& state, const Sizes& s) {
  Tensor result = torch::zeros({s.batch, s.heads, s.padded_keys, s.padded_values}, state.options());
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
  out.o = torch::empty({s.batch, s.tokens, s.heads, s.values}, in.v.options());
  if (keep_checkpoints) {
    out.checkpoints =
        torch::empty({s.batch, s.heads, s.chunks + 1, s.padded_keys, s.padded_values}, in.state.options());
  }
  const Tensor state = padded_state(in.state, s);
  const auto make = [&](int64_t b, int64_t h) {
    const int64_t at = b * s.heads + h;
    float* checkpoints = out.checkpoints.defined()
                             ? out.checkpoints.mutable_data_ptr<float>() + at * (s.chunks + 1) * s.state_size()
                             : nullptr;
    return GlaForward{result_of(out.o, b, h), state.mutable_data_ptr<float>() + at * s.state_size(), checkpoints};
  };
  run_heads<GlaForward>(in, s, make,
                        s.tokens < kFewTokens && !keep_checkpoints ? gla_recurrent_heads : gla_forward_heads);
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
    return GlaBackward{rows_of(d_o, b, h),
                       checkpoints.const_data_ptr<float>() + at * (s.chunks + 1) * s.state_size(),
                       g.state.mutable_data_ptr<float>() + at * s.state_size(),
                       result_of(g.q, b, h),
                       result_of(g.k, b, h),
                       result_of(g.v, b, h),
                       result_of(g.gate, b, h)};
  };
  run_heads<GlaBackward>(in, s, make, gla_backward_heads);
  g.state = without_padding(g.state, s);
  return g;
}

}  // namespace seqloom::ops::cpu
