#include "ops/cpu/selective_scan.h"

#include <hwy/aligned_allocator.h>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/selective_scan.cpp"
#include <hwy/foreach_target.h>
// clang-format off: must follow foreach_target
#include <hwy/highway.h>
#include "ops/cpu/vector_math-inl.h"
// clang-format on

#ifndef SEQLOOM_SELECTIVE_SCAN_SHARED
#define SEQLOOM_SELECTIVE_SCAN_SHARED
namespace seqloom::ops::cpu {

/// Channels that are worked on together: a cache line, and the vector lanes of AVX-512. The N states are looped over,
/// so that nothing is summed across lanes and B_t, C_t are broadcast.
constexpr size_t kBlock = 16;
/// Tokens between two states that are kept for the backward pass.
constexpr size_t kChunk = 32;

/// Raw pointers into ScanInputs for one sequence. Rows of u, delta, z are E apart.
struct ScanRows {
  const float *u, *delta, *z, *A, *D, *bias;
  const float *B, *C;  // of the channel's group: rows `stride_B`, `stride_C` apart; constant maps [N, E] (stride 0)
  bool constant_B, constant_C, softplus;
  size_t tokens, channels, states, stride_B, stride_C;
};

/// Where one block of channels [e, e + count) writes in the forward pass.
struct ForwardRows {
  float* y;            // [T, E]
  float* state;        // [N, E], read and replaced
  float* checkpoints;  // [chunks, N, E] or null
};

/// Where a slice of channels writes in the backward pass.
struct BackwardRows {
  const float *dy, *checkpoints;
  float *du, *ddelta, *dz;
  float *dB, *dC;  // of varying maps, [T, N], this slice's own
  float *dA, *dBconst, *dCconst,
      *dstate;        // [N, E], added to; dstate is the final state's gradient and becomes the initial one's
  float *dD, *dbias;  // [E], added to
};

}  // namespace seqloom::ops::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace seqloom::ops::cpu::HWY_NAMESPACE {

const hn::CappedTag<float, kBlock> kTag;
using Vector = hn::Vec<decltype(kTag)>;
constexpr size_t kLanes = hn::MaxLanes(kTag);
constexpr size_t kVectors = kBlock / kLanes;

HWY_INLINE size_t Rest(size_t count, size_t v) {
  return count > v * kLanes ? count - v * kLanes : 0;
}

/// factor * columns e .. e+count of [N, E] -> [N][kBlock].
void Gather(const float* from, size_t stride, size_t rows, size_t count, float* to, float factor = 1) {
  for (size_t n = 0; n < rows; ++n) {
    for (size_t v = 0; v < kVectors; ++v) {
      const Vector part = LoadFirst(kTag, from + n * stride + v * kLanes, Rest(count, v));
      hn::Store(hn::Mul(part, hn::Set(kTag, factor)), kTag, to + n * kBlock + v * kLanes);
    }
  }
}

void Scatter(const float* from, size_t stride, size_t rows, size_t count, float* to) {
  for (size_t n = 0; n < rows; ++n) {
    for (size_t v = 0; v < kVectors; ++v) {
      StoreFirst(kTag, hn::Load(kTag, from + n * kBlock + v * kLanes), to + n * stride + v * kLanes, Rest(count, v));
    }
  }
}

HWY_INLINE Vector StepSize(const ScanRows& in, size_t at, size_t e, size_t v, size_t count) {
  Vector step = LoadFirst(kTag, in.delta + at + v * kLanes, Rest(count, v));
  if (in.bias != nullptr) step = hn::Add(step, LoadFirst(kTag, in.bias + e + v * kLanes, Rest(count, v)));
  return in.softplus ? Softplus(kTag, step) : step;
}

/// B_t[n] or C_t[n] for a vector of channels: broadcast, or from the constant map gathered as [N][kBlock].
template <bool kConstant>
HWY_INLINE Vector Map(const float* row, const float* gathered, size_t n, size_t v) {
  if constexpr (kConstant) return hn::Load(kTag, gathered + n * kBlock + v * kLanes);
  return hn::Set(kTag, row[n]);
}

template <bool kConstantB, bool kConstantC>
void ForwardBlock(const ScanRows& in, const ForwardRows& out, size_t e, size_t count, float* scratch) {
  const size_t N = in.states;
  float *h = scratch, *A = h + N * kBlock, *Bc = A + N * kBlock, *Cc = Bc + N * kBlock;
  Gather(out.state + e, in.channels, N, count, h);
  Gather(in.A + e, in.channels, N, count, A, kLog2E);  // exp(step A) is then a power of two
  if (kConstantB) Gather(in.B + e, in.channels, N, count, Bc);
  if (kConstantC) Gather(in.C + e, in.channels, N, count, Cc);
  for (size_t t = 0; t < in.tokens; ++t) {
    if (out.checkpoints != nullptr && t % kChunk == 0) {
      Scatter(h, in.channels, N, count, out.checkpoints + t / kChunk * N * in.channels + e);
    }
    const size_t at = t * in.channels + e;
    const float *B = in.B + t * in.stride_B, *C = in.C + t * in.stride_C;
    Vector step[kVectors], added[kVectors], y[kVectors];
    for (size_t v = 0; v < kVectors; ++v) {
      const Vector u = LoadFirst(kTag, in.u + at + v * kLanes, Rest(count, v));
      step[v] = StepSize(in, at, e, v, count);
      added[v] = hn::Mul(step[v], u);
      y[v] = in.D != nullptr ? hn::Mul(u, LoadFirst(kTag, in.D + e + v * kLanes, Rest(count, v))) : hn::Zero(kTag);
    }
    for (size_t n = 0; n < N; ++n) {
      for (size_t v = 0; v < kVectors; ++v) {
        float* place = h + n * kBlock + v * kLanes;
        const Vector decay = Exp2(kTag, hn::Mul(step[v], hn::Load(kTag, A + n * kBlock + v * kLanes)));
        const Vector state = hn::MulAdd(decay, hn::Load(kTag, place), hn::Mul(added[v], Map<kConstantB>(B, Bc, n, v)));
        hn::Store(state, kTag, place);
        y[v] = hn::MulAdd(state, Map<kConstantC>(C, Cc, n, v), y[v]);
      }
    }
    for (size_t v = 0; v < kVectors; ++v) {
      if (in.z != nullptr) {
        const Vector z = LoadFirst(kTag, in.z + at + v * kLanes, Rest(count, v));
        y[v] = hn::Mul(y[v], hn::Mul(z, Sigmoid(kTag, z)));
      }
      StoreFirst(kTag, y[v], out.y + at + v * kLanes, Rest(count, v));
    }
  }
  Scatter(h, in.channels, N, count, out.state + e);
}

void Forward(const ScanRows& in, const ForwardRows& out, size_t e, size_t count, float* scratch) {
  const auto run = in.constant_B ? (in.constant_C ? ForwardBlock<true, true> : ForwardBlock<true, false>)
                                 : (in.constant_C ? ForwardBlock<false, true> : ForwardBlock<false, false>);
  run(in, out, e, count, scratch);
}

/// The backward pass of one block over one chunk of tokens [first, last).
struct ChunkScratch {
  float *before, *decay;  // [kChunk][N][kBlock]: h_{t-1} and exp(step A)
  float *step, *y;        // [kChunk][kBlock]
  float *A, *Bc, *Cc;     // [N][kBlock]
  float *accB, *accC;     // [kChunk][N][kBlock]: lanes that sum over the blocks of a slice
};

template <bool kConstantB, bool kConstantC>
void Recompute(const ScanRows& in, const BackwardRows& out, size_t e, size_t count, size_t first, size_t last,
               const ChunkScratch& s) {
  const size_t N = in.states;
  Gather(in.A + e, in.channels, N, count, s.A, kLog2E);
  if (kConstantB) Gather(in.B + e, in.channels, N, count, s.Bc);
  if (kConstantC) Gather(in.C + e, in.channels, N, count, s.Cc);
  Gather(out.checkpoints + first / kChunk * N * in.channels + e, in.channels, N, count, s.before);
  for (size_t t = first; t < last; ++t) {
    const size_t at = t * in.channels + e, i = t - first;
    const float *B = in.B + t * in.stride_B, *C = in.C + t * in.stride_C;
    for (size_t v = 0; v < kVectors; ++v) {
      const Vector u = LoadFirst(kTag, in.u + at + v * kLanes, Rest(count, v));
      const Vector step = StepSize(in, at, e, v, count), added = hn::Mul(step, u);
      Vector y = in.D != nullptr ? hn::Mul(u, LoadFirst(kTag, in.D + e + v * kLanes, Rest(count, v))) : hn::Zero(kTag);
      for (size_t n = 0; n < N; ++n) {
        const size_t place = (i * N + n) * kBlock + v * kLanes;
        const Vector decay = Exp2(kTag, hn::Mul(step, hn::Load(kTag, s.A + n * kBlock + v * kLanes)));
        const Vector state =
            hn::MulAdd(decay, hn::Load(kTag, s.before + place), hn::Mul(added, Map<kConstantB>(B, s.Bc, n, v)));
        hn::Store(decay, kTag, s.decay + place);
        if (t + 1 < last) hn::Store(state, kTag, s.before + place + N * kBlock);
        if (in.z != nullptr) y = hn::MulAdd(state, Map<kConstantC>(C, s.Cc, n, v), y);
      }
      hn::Store(step, kTag, s.step + i * kBlock + v * kLanes);
      hn::Store(y, kTag, s.y + i * kBlock + v * kLanes);
    }
  }
}

/// Gradients that are carried from token to token for one block: g = dL/dh_t and sums over t, all [N][kBlock].
struct Carried {
  float *g, *dA, *dB, *dC;
  float *dD, *dbias;  // [kBlock]
};

template <bool kConstantB, bool kConstantC>
void BackwardTokens(const ScanRows& in, const BackwardRows& out, size_t e, size_t count, size_t first, size_t last,
                    const ChunkScratch& s, const Carried& c) {
  const size_t N = in.states;
  const Vector one = hn::Set(kTag, 1.0f);
  for (size_t t = last; t-- > first;) {
    const size_t at = t * in.channels + e, i = t - first;
    const float *B = in.B + t * in.stride_B, *C = in.C + t * in.stride_C;
    for (size_t v = 0; v < kVectors; ++v) {
      const size_t rest = Rest(count, v), lane = v * kLanes;
      Vector dy = LoadFirst(kTag, out.dy + at + lane, rest);
      if (in.z != nullptr) {
        const Vector z = LoadFirst(kTag, in.z + at + lane, rest), gate = Sigmoid(kTag, z);
        const Vector slope = hn::Mul(gate, hn::MulAdd(z, hn::Sub(one, gate), one));
        StoreFirst(kTag, hn::Mul(hn::Mul(dy, hn::Load(kTag, s.y + i * kBlock + lane)), slope), out.dz + at + lane,
                   rest);
        dy = hn::Mul(dy, hn::Mul(z, gate));
      }
      const Vector u = LoadFirst(kTag, in.u + at + lane, rest), step = hn::Load(kTag, s.step + i * kBlock + lane);
      const Vector added = hn::Mul(step, u);
      Vector through_A = hn::Zero(kTag), through_B = hn::Zero(kTag);
      for (size_t n = 0; n < N; ++n) {
        const size_t place = (i * N + n) * kBlock + lane, fixed = n * kBlock + lane;
        const Vector decay = hn::Load(kTag, s.decay + place), b = Map<kConstantB>(B, s.Bc, n, v);
        const Vector kept = hn::Mul(decay, hn::Load(kTag, s.before + place));
        const Vector state = hn::MulAdd(added, b, kept);
        const Vector g = hn::MulAdd(dy, Map<kConstantC>(C, s.Cc, n, v), hn::Load(kTag, c.g + fixed));
        float* dC = kConstantC ? c.dC + fixed : s.accC + place;
        float* dB = kConstantB ? c.dB + fixed : s.accB + place;
        hn::Store(hn::MulAdd(dy, state, hn::Load(kTag, dC)), kTag, dC);
        hn::Store(hn::MulAdd(g, added, hn::Load(kTag, dB)), kTag, dB);
        const Vector g_kept = hn::Mul(g, kept);
        through_A = hn::MulAdd(g_kept, hn::Load(kTag, s.A + fixed), through_A);
        through_B = hn::MulAdd(g, b, through_B);
        hn::Store(hn::MulAdd(g_kept, step, hn::Load(kTag, c.dA + fixed)), kTag, c.dA + fixed);
        hn::Store(hn::Mul(g, decay), kTag, c.g + fixed);
      }
      // s.A holds A log2 e
      Vector du = hn::Mul(through_B, step),
             ddelta = hn::MulAdd(through_B, u, hn::Mul(through_A, hn::Set(kTag, 1 / kLog2E)));
      if (in.D != nullptr) {
        du = hn::MulAdd(dy, LoadFirst(kTag, in.D + e + lane, rest), du);
        hn::Store(hn::MulAdd(dy, u, hn::Load(kTag, c.dD + lane)), kTag, c.dD + lane);
      }
      // d softplus(x) / dx = 1 - e^{-softplus(x)}
      if (in.softplus) ddelta = hn::Mul(ddelta, hn::Sub(one, Exp(kTag, hn::Neg(step))));
      if (in.bias != nullptr) hn::Store(hn::Add(ddelta, hn::Load(kTag, c.dbias + lane)), kTag, c.dbias + lane);
      StoreFirst(kTag, du, out.du + at + lane, rest);
      StoreFirst(kTag, ddelta, out.ddelta + at + lane, rest);
    }
  }
}

/// Sums the lanes of acc [tokens][N][kBlock] into rows [T, N].
void SumLanes(const float* acc, size_t tokens, size_t states, float* out) {
  for (size_t i = 0; i < tokens * states; ++i) {
    Vector sum = hn::Load(kTag, acc + i * kBlock);
    for (size_t v = 1; v < kVectors; ++v) sum = hn::Add(sum, hn::Load(kTag, acc + i * kBlock + v * kLanes));
    out[i] = hn::GetLane(hn::SumOfLanes(kTag, sum));
  }
}

template <bool kConstantB, bool kConstantC>
void BackwardSlice(const ScanRows& in, const BackwardRows& out, size_t begin, size_t end) {
  const size_t N = in.states, tile = N * kBlock, blocks = (end - begin + kBlock - 1) / kBlock;
  const auto buffer = hwy::AllocateAligned<float>(4 * kChunk * tile + 2 * kChunk * kBlock + 3 * tile);
  float* place = buffer.get();
  const auto take = [&](size_t size) { return std::exchange(place, place + size); };
  ChunkScratch s{};
  s.before = take(kChunk * tile);
  s.decay = take(kChunk * tile);
  s.accB = take(kChunk * tile);
  s.accC = take(kChunk * tile);
  s.step = take(kChunk * kBlock);
  s.y = take(kChunk * kBlock);
  s.A = take(tile);
  s.Bc = take(tile);
  s.Cc = take(tile);
  const size_t per_block = 4 * tile + 2 * kBlock;
  const auto carried = hwy::AllocateAligned<float>(blocks * per_block);
  std::fill_n(carried.get(), blocks * per_block, 0.0f);
  const auto of_block = [&](size_t k) {
    float* p = carried.get() + k * per_block;
    return Carried{p, p + tile, p + 2 * tile, p + 3 * tile, p + 4 * tile, p + 4 * tile + kBlock};
  };
  const auto count_of = [&](size_t k) { return std::min(kBlock, end - begin - k * kBlock); };
  for (size_t k = 0; k < blocks; ++k)
    Gather(out.dstate + begin + k * kBlock, in.channels, N, count_of(k), of_block(k).g);

  for (size_t chunk = (in.tokens + kChunk - 1) / kChunk; chunk-- > 0;) {
    const size_t first = chunk * kChunk, last = std::min(in.tokens, first + kChunk);
    std::fill_n(s.accB, 2 * kChunk * tile, 0.0f);  // accB and accC
    for (size_t k = 0; k < blocks; ++k) {
      const size_t e = begin + k * kBlock;
      Recompute<kConstantB, kConstantC>(in, out, e, count_of(k), first, last, s);
      BackwardTokens<kConstantB, kConstantC>(in, out, e, count_of(k), first, last, s, of_block(k));
    }
    if (!kConstantB) SumLanes(s.accB, last - first, N, out.dB + first * N);
    if (!kConstantC) SumLanes(s.accC, last - first, N, out.dC + first * N);
  }
  for (size_t k = 0; k < blocks; ++k) {
    const Carried c = of_block(k);
    const size_t e = begin + k * kBlock, count = count_of(k);
    Scatter(c.g, in.channels, N, count, out.dstate + e);
    Scatter(c.dA, in.channels, N, count, out.dA + e);
    if (kConstantB) Scatter(c.dB, in.channels, N, count, out.dBconst + e);
    if (kConstantC) Scatter(c.dC, in.channels, N, count, out.dCconst + e);
    if (in.D != nullptr) Scatter(c.dD, in.channels, 1, count, out.dD + e);
    if (in.bias != nullptr) Scatter(c.dbias, in.channels, 1, count, out.dbias + e);
  }
}

void Backward(const ScanRows& in, const BackwardRows& out, size_t begin, size_t end) {
  const auto run = in.constant_B ? (in.constant_C ? BackwardSlice<true, true> : BackwardSlice<true, false>)
                                 : (in.constant_C ? BackwardSlice<false, true> : BackwardSlice<false, false>);
  run(in, out, begin, end);
}

}  // namespace seqloom::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace seqloom::ops::cpu {

HWY_EXPORT(Forward);
HWY_EXPORT(Backward);

namespace {

/// Channel blocks that one backward task sums its dB and dC over. Fixed, so that results do not depend on the threads.
constexpr int64_t kSliceBlocks = 8;

const float* pointer(const torch::Tensor& t) {
  return t.defined() ? t.const_data_ptr<float>() : nullptr;
}
float* writable(torch::Tensor& t) {
  return t.defined() ? t.mutable_data_ptr<float>() : nullptr;
}
float* shifted(float* p, int64_t by) {
  return p == nullptr ? nullptr : p + by;
}

struct Sizes {
  explicit Sizes(const ScanInputs& in)
      : batch(in.u.size(0)),
        tokens(in.u.size(1)),
        channels(in.u.size(2)),
        states(in.A.size(0)),
        groups(in.groups()),
        group_channels(channels / groups),
        chunks((tokens + kChunk - 1) / kChunk) {}
  int64_t batch, tokens, channels, states, groups, group_channels, chunks;
};

ScanRows rows_of(const ScanInputs& in, const Sizes& s, int64_t b, int64_t group) {
  const int64_t row = b * s.tokens * s.channels;
  const auto map = [&](const torch::Tensor& m) {
    return m.dim() == 2 ? pointer(m) : pointer(m) + b * s.tokens * s.groups * s.states + group * s.states;
  };
  ScanRows rows{};
  rows.u = pointer(in.u) + row;
  rows.delta = pointer(in.delta) + row;
  rows.z = in.z.defined() ? pointer(in.z) + row : nullptr;
  rows.A = pointer(in.A);
  rows.D = pointer(in.D);
  rows.bias = pointer(in.bias);
  rows.B = map(in.B);
  rows.C = map(in.C);
  rows.constant_B = in.B.dim() == 2;
  rows.constant_C = in.C.dim() == 2;
  rows.softplus = in.softplus;
  rows.tokens = s.tokens;
  rows.channels = s.channels;
  rows.states = s.states;
  rows.stride_B = rows.constant_B ? 0 : s.groups * s.states;
  rows.stride_C = rows.constant_C ? 0 : s.groups * s.states;
  return rows;
}

/// Runs work(sequence, group, first channel, last channel) in parallel over slices of `width` channels of each group.
template <typename Work>
void for_channel_slices(const Sizes& s, int64_t width, Work work) {
  const int64_t per_group = (s.group_channels + width - 1) / width;
  at::parallel_for(0, s.batch * s.groups * per_group, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t slice = task % per_group, group = task / per_group % s.groups, b = task / per_group / s.groups;
      const int64_t first = group * s.group_channels + slice * width;
      work(b, group, first, std::min(first + width, (group + 1) * s.group_channels));
    }
  });
}

}  // namespace

int64_t ScanInputs::groups() const {
  return B.dim() == 4 ? B.size(2) : C.dim() == 4 ? C.size(2) : 1;
}

ScanOutputs selective_scan_forward(const ScanInputs& in, bool keep_checkpoints) {
  const Sizes s(in);
  ScanOutputs out;
  out.y = torch::empty_like(in.u);
  out.state = in.state.clone();
  if (keep_checkpoints) out.checkpoints = torch::empty({s.batch, s.chunks, s.states, s.channels}, in.u.options());
  float *y = writable(out.y), *state = writable(out.state), *checkpoints = writable(out.checkpoints);
  for_channel_slices(s, kBlock, [&](int64_t b, int64_t group, int64_t first, int64_t last) {
    const auto scratch = hwy::AllocateAligned<float>(4 * s.states * kBlock);
    const ForwardRows rows{y + b * s.tokens * s.channels, state + b * s.states * s.channels,
                           shifted(checkpoints, b * s.chunks * s.states * s.channels)};
    HWY_DYNAMIC_DISPATCH(Forward)(rows_of(in, s, b, group), rows, first, last - first, scratch.get());
  });
  return out;
}

ScanGradients selective_scan_backward(const ScanInputs& in, const torch::Tensor& checkpoints, const torch::Tensor& dy,
                                      const torch::Tensor& dstate) {
  const Sizes s(in);
  const auto options = in.u.options();
  const int64_t width = kSliceBlocks * static_cast<int64_t>(kBlock), slices = (s.group_channels + width - 1) / width;
  const auto per_channel = [&](bool present) {
    return present ? torch::zeros({s.batch, s.channels}, options) : torch::Tensor();
  };
  const auto per_state = [&](bool present) {
    return present ? torch::zeros({s.batch, s.states, s.channels}, options) : torch::Tensor();
  };
  const auto per_token = [&](bool present) {
    return present ? torch::empty({slices, s.batch, s.groups, s.tokens, s.states}, options) : torch::Tensor();
  };
  ScanGradients g;
  g.u = torch::empty_like(in.u);
  g.delta = torch::empty_like(in.u);
  if (in.z.defined()) g.z = torch::empty_like(in.u);
  g.state = dstate.clone();
  torch::Tensor dA = per_state(true), dBconst = per_state(in.B.dim() == 2), dCconst = per_state(in.C.dim() == 2);
  torch::Tensor dB = per_token(in.B.dim() == 4), dC = per_token(in.C.dim() == 4);
  torch::Tensor dD = per_channel(in.D.defined()), dbias = per_channel(in.bias.defined());
  BackwardRows base{pointer(dy),       pointer(checkpoints), writable(g.u),  writable(g.delta), writable(g.z),
                    writable(dB),      writable(dC),         writable(dA),   writable(dBconst), writable(dCconst),
                    writable(g.state), writable(dD),         writable(dbias)};
  for_channel_slices(s, width, [&](int64_t b, int64_t group, int64_t first, int64_t last) {
    const int64_t row = b * s.tokens * s.channels, state = b * s.states * s.channels, channel = b * s.channels;
    const int64_t slice = (first - group * s.group_channels) / width;
    const int64_t map = ((slice * s.batch + b) * s.groups + group) * s.tokens * s.states;
    const BackwardRows rows{base.dy + row,
                            base.checkpoints + b * s.chunks * s.states * s.channels,
                            base.du + row,
                            base.ddelta + row,
                            shifted(base.dz, row),
                            shifted(base.dB, map),
                            shifted(base.dC, map),
                            base.dA + state,
                            shifted(base.dBconst, state),
                            shifted(base.dCconst, state),
                            base.dstate + state,
                            shifted(base.dD, channel),
                            shifted(base.dbias, channel)};
    HWY_DYNAMIC_DISPATCH(Backward)(rows_of(in, s, b, group), rows, first, last);
  });
  const auto over_batch = [](const torch::Tensor& t) { return t.defined() ? t.sum(0) : torch::Tensor(); };
  const auto over_slices = [](const torch::Tensor& t) { return t.sum(0).permute({0, 2, 1, 3}).contiguous(); };
  g.A = over_batch(dA);
  g.B = dB.defined() ? over_slices(dB) : over_batch(dBconst);
  g.C = dC.defined() ? over_slices(dC) : over_batch(dCconst);
  g.D = over_batch(dD);
  g.bias = over_batch(dbias);
  return g;
}

}  // namespace seqloom::ops::cpu
#endif  // HWY_ONCE
