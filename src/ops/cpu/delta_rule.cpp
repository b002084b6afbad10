#include "ops/cpu/delta_rule.h"

#include "ops/cpu/delta_rule_rows.h"
#include "ops/cpu/heads.h"

namespace seqloom::ops::cpu {
namespace {

using torch::Tensor;

/// Heads that one thread takes through a chunk before the next chunk, as far as their states share the second cache.
constexpr int64_t kHeadsTogether = 16, kFloatsTogether = int64_t{1} << 17;

int64_t multiple_of(int64_t step, int64_t size) {
  return (size + step - 1) / step * step;
}

struct Sizes {
  explicit Sizes(const DeltaInputs& in)
      : heads(in.q.size(2)),
        keys(in.q.size(3)),
        values(in.v.size(3)),
        state(multiple_of(16, keys) * multiple_of(16, values)),
        errors(multiple_of(16, values) * static_cast<int64_t>(kDeltaChunk)),
        sequences(sequences_of(in.q, in.offsets, kDeltaChunk)) {}
  int64_t heads, keys, values;
  int64_t state, errors;  // floats of a state and of a chunk's errors, padded
  std::vector<Sequence> sequences;

  int64_t together() const { return std::clamp<int64_t>(kFloatsTogether / state, 1, kHeadsTogether); }
  int64_t count() const { return static_cast<int64_t>(sequences.size()); }
  int64_t chunks() const { return sequences.back().chunks_before + sequences.back().chunks; }
  /// Where what is kept of head h of sequence b begins: the states around its chunks, and its chunks' errors.
  int64_t states_at(int64_t b, int64_t h) const {
    return ((sequences[b].chunks_before + b) * heads + h * (sequences[b].chunks + 1)) * state;
  }
  int64_t errors_at(int64_t b, int64_t h) const {
    return (sequences[b].chunks_before * heads + h * sequences[b].chunks) * errors;
  }
};

auto head_maker(const DeltaInputs& in, const Sizes& s) {
  return [&in, &s](int64_t b, int64_t h) {
    const Sequence& of = s.sequences[b];
    return DeltaHead{rows_of(in.q, of, h),        rows_of(in.k, of, h),          rows_of(in.v, of, h),
                     rows_of(in.beta, of, h),     rows_of(in.gate, of, h),       static_cast<size_t>(of.tokens),
                     static_cast<size_t>(s.keys), static_cast<size_t>(s.values), static_cast<float>(in.scale)};
  };
}

/// Head h of sequence b in t [S, H, ...], contiguous.
float* head_in(const Tensor& t, int64_t b, int64_t h) {
  return t.mutable_data_ptr<float>() + b * t.stride(0) + h * t.stride(1);
}

}  // namespace

DeltaOutputs delta_rule_forward(const DeltaInputs& in, bool keep_for_backward) {
  const Sizes s(in);
  DeltaOutputs out;
  out.o = torch::empty(in.v.sizes(), in.v.options());
  out.state = torch::empty(in.state.sizes(), in.state.options());
  const bool keep = keep_for_backward;
  out.states = torch::empty({s.heads * (keep ? s.chunks() + s.count() : s.count()), s.state}, in.state.options());
  out.errors = torch::empty({s.heads * (keep ? s.chunks() : s.count()), s.errors}, in.state.options());
  const auto make = [&](int64_t b, int64_t h) {
    const int64_t head = b * s.heads + h;
    return DeltaForward{result_of(out.o, s.sequences[b], h),
                        head_in(in.state, b, h),
                        head_in(out.state, b, h),
                        out.states.mutable_data_ptr<float>() + (keep ? s.states_at(b, h) : head * s.state),
                        out.errors.mutable_data_ptr<float>() + (keep ? s.errors_at(b, h) : head * s.errors),
                        keep ? static_cast<size_t>(s.state) : 0,
                        keep ? static_cast<size_t>(s.errors) : 0};
  };
  for_heads<DeltaHead, DeltaForward>(s.sequences, s.heads, s.together(), head_maker(in, s), make, delta_forward_heads);
  return out;
}

DeltaGradients delta_rule_backward(const DeltaInputs& in, const Tensor& states, const Tensor& errors, const Tensor& d_o,
                                   const Tensor& d_state) {
  const Sizes s(in);
  const auto like = [](const Tensor& t) { return t.defined() ? torch::empty(t.sizes(), t.options()) : Tensor(); };
  DeltaGradients g{like(in.q), like(in.k), like(in.v), like(in.beta), like(in.gate), like(d_state)};
  const Tensor d_panels = torch::empty({s.count(), s.heads, s.state}, in.state.options());
  const auto make = [&](int64_t b, int64_t h) {
    const Sequence& of = s.sequences[b];
    return DeltaBackward{rows_of(d_o, of, h),
                         states.const_data_ptr<float>() + s.states_at(b, h),
                         errors.const_data_ptr<float>() + s.errors_at(b, h),
                         static_cast<size_t>(s.state),
                         static_cast<size_t>(s.errors),
                         head_in(d_state, b, h),
                         head_in(g.state, b, h),
                         head_in(d_panels, b, h),
                         result_of(g.q, of, h),
                         result_of(g.k, of, h),
                         result_of(g.v, of, h),
                         result_of(g.beta, of, h),
                         result_of(g.gate, of, h)};
  };
  for_heads<DeltaHead, DeltaBackward>(s.sequences, s.heads, s.together(), head_maker(in, s), make,
                                      delta_backward_heads);
  return g;
}

}  // namespace seqloom::ops::cpu
