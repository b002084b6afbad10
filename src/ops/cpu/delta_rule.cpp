#include "ops/cpu/delta_rule.h"

#include "ops/cpu/delta_rule_rows.h"
#include "ops/cpu/heads.h"

namespace seqloom::ops::cpu {
namespace {

using torch::Tensor;

/// Below this many tokens the recurrence itself takes less than a chunk's set-up.
constexpr int64_t kFewTokens = 8;
/// Heads that one thread takes through a chunk before the next chunk, as far as their states share the second cache.
constexpr int64_t kHeadsTogether = 16, kFloatsTogether = int64_t{1} << 17;

int64_t multiple_of(int64_t step, int64_t size) {
  return (size + step - 1) / step * step;
}

struct Sizes {
  explicit Sizes(const DeltaInputs& in)
      : batch(in.q.size(0)),
        tokens(in.q.size(1)),
        heads(in.q.size(2)),
        keys(in.q.size(3)),
        values(in.v.size(3)),
        chunks(multiple_of(kDeltaChunk, tokens) / static_cast<int64_t>(kDeltaChunk)),
        state(multiple_of(16, keys) * multiple_of(16, values)),
        errors(multiple_of(16, values) * static_cast<int64_t>(kDeltaChunk)) {}
  int64_t batch, tokens, heads, keys, values, chunks;
  int64_t state, errors;  // floats of a state and of a chunk's errors, padded

  int64_t together() const { return std::clamp<int64_t>(kFloatsTogether / state, 1, kHeadsTogether); }
};

auto head_maker(const DeltaInputs& in, const Sizes& s) {
  return [&in, &s](int64_t b, int64_t h) {
    return DeltaHead{rows_of(in.q, b, h),         rows_of(in.k, b, h),           rows_of(in.v, b, h),
                     rows_of(in.beta, b, h),      rows_of(in.gate, b, h),        static_cast<size_t>(s.tokens),
                     static_cast<size_t>(s.keys), static_cast<size_t>(s.values), static_cast<float>(in.scale)};
  };
}

/// Head h of sequence b in t [B, H, ...], contiguous.
float* head_in(const Tensor& t, int64_t b, int64_t h) {
  return t.mutable_data_ptr<float>() + b * t.stride(0) + h * t.stride(1);
}

}  // namespace

DeltaOutputs delta_rule_forward(const DeltaInputs& in, bool keep_for_backward) {
  const Sizes s(in);
  DeltaOutputs out;
  out.o = torch::empty({s.batch, s.tokens, s.heads, s.values}, in.v.options());
  out.state = torch::empty(in.state.sizes(), in.state.options());
  if (s.tokens < kFewTokens && !keep_for_backward) {
    const auto make = [&](int64_t b, int64_t h) {
      return DeltaForward{
          result_of(out.o, b, h), head_in(in.state, b, h), head_in(out.state, b, h), nullptr, nullptr, 0, 0};
    };
    for_heads<DeltaHead, DeltaForward>(s.batch, s.heads, s.together(), head_maker(in, s), make, delta_recurrent_heads);
    return out;
  }
  out.states = torch::empty({s.batch, s.heads, keep_for_backward ? s.chunks + 1 : 1, s.state}, in.state.options());
  out.errors = torch::empty({s.batch, s.heads, keep_for_backward ? s.chunks : 1, s.errors}, in.state.options());
  const auto make = [&](int64_t b, int64_t h) {
    return DeltaForward{result_of(out.o, b, h),
                        head_in(in.state, b, h),
                        head_in(out.state, b, h),
                        head_in(out.states, b, h),
                        head_in(out.errors, b, h),
                        keep_for_backward ? static_cast<size_t>(s.state) : 0,
                        keep_for_backward ? static_cast<size_t>(s.errors) : 0};
  };
  for_heads<DeltaHead, DeltaForward>(s.batch, s.heads, s.together(), head_maker(in, s), make, delta_forward_heads);
  return out;
}

DeltaGradients delta_rule_backward(const DeltaInputs& in, const Tensor& states, const Tensor& errors, const Tensor& d_o,
                                   const Tensor& d_state) {
  const Sizes s(in);
  const auto like = [](const Tensor& t) { return t.defined() ? torch::empty(t.sizes(), t.options()) : Tensor(); };
  DeltaGradients g{like(in.q), like(in.k), like(in.v), like(in.beta), like(in.gate), like(d_state)};
  const Tensor d_panels = torch::empty({s.batch, s.heads, s.state}, in.state.options());
  const auto make = [&](int64_t b, int64_t h) {
    return DeltaBackward{rows_of(d_o, b, h),           head_in(states, b, h),         head_in(errors, b, h),
                         static_cast<size_t>(s.state), static_cast<size_t>(s.errors), head_in(d_state, b, h),
                         head_in(g.state, b, h),       head_in(d_panels, b, h),       result_of(g.q, b, h),
                         result_of(g.k, b, h),         result_of(g.v, b, h),          result_of(g.beta, b, h),
                         result_of(g.gate, b, h)};
  };
  for_heads<DeltaHead, DeltaBackward>(s.batch, s.heads, s.together(), head_maker(in, s), make, delta_backward_heads);
  return g;
}

}  // namespace seqloom::ops::cpu
