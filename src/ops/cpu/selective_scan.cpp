#include "ops/cpu/selective_scan.h"

#include <ATen/Parallel.h>

#include <numeric>

#include "ops/cpu/selective_scan_rows.h"

namespace seqloom::ops::cpu {
namespace {

/// Channels of a slice.
constexpr int64_t kSlice = kSliceBlocks * kBlock;

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
        slices((group_channels + kSlice - 1) / kSlice),
        tiles((tokens + kTile - 1) / kTile) {}
  int64_t batch, tokens, channels, states, groups, group_channels, slices, tiles;
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

/// Runs work(sequence, group, first slice, first channel, last channel) in parallel over ranges of channels, which are
/// as wide as an even share for each thread allows.
template <typename Work>
void for_channel_ranges(const Sizes& s, Work work) {
  const int64_t rows = s.batch * s.groups, threads = at::get_num_threads();
  const int64_t parts = std::min(s.slices, threads / std::gcd(rows, threads));
  at::parallel_for(0, rows * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t part = task % parts, group = task / parts % s.groups, b = task / parts / s.groups;
      const int64_t slice = part * s.slices / parts, last = (part + 1) * s.slices / parts;
      work(b, group, slice, group * s.group_channels + slice * kSlice,
           group * s.group_channels + std::min(last * kSlice, s.group_channels));
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
  if (keep_checkpoints) out.checkpoints = torch::empty({s.batch, s.tiles, s.states, s.channels}, in.u.options());
  float *y = writable(out.y), *state = writable(out.state), *checkpoints = writable(out.checkpoints);
  for_channel_ranges(s, [&](int64_t b, int64_t group, int64_t, int64_t first, int64_t last) {
    const ForwardRows rows{y + b * s.tokens * s.channels, state + b * s.states * s.channels,
                           shifted(checkpoints, b * s.tiles * s.states * s.channels)};
    scan_forward_range(rows_of(in, s, b, group), rows, first, last);
  });
  return out;
}

ScanGradients selective_scan_backward(const ScanInputs& in, const torch::Tensor& checkpoints, const torch::Tensor& dy,
                                      const torch::Tensor& dstate) {
  const Sizes s(in);
  const auto options = in.u.options();
  const auto per_channel = [&](bool present) {
    return present ? torch::zeros({s.batch, s.channels}, options) : torch::Tensor();
  };
  const auto per_state = [&](bool present) {
    return present ? torch::zeros({s.batch, s.states, s.channels}, options) : torch::Tensor();
  };
  const auto per_token = [&](bool present) {
    return present ? torch::empty({s.slices, s.batch, s.groups, s.tokens, s.states}, options) : torch::Tensor();
  };
  ScanGradients g;
  g.u = torch::empty_like(in.u);
  g.delta = torch::empty_like(in.u);
  if (in.z.defined()) g.z = torch::empty_like(in.u);
  g.state = dstate.clone();
  torch::Tensor dA = per_state(true), dBconst = per_state(in.B.dim() == 2), dCconst = per_state(in.C.dim() == 2);
  torch::Tensor dB = per_token(in.B.dim() == 4), dC = per_token(in.C.dim() == 4);
  torch::Tensor dD = per_channel(in.D.defined()), dbias = per_channel(in.bias.defined());
  BackwardRows base{pointer(dy),       pointer(checkpoints),
                    writable(g.u),     writable(g.delta),
                    writable(g.z),     writable(dB),
                    writable(dC),      static_cast<size_t>(s.batch * s.groups * s.tokens * s.states),
                    writable(dA),      writable(dBconst),
                    writable(dCconst), writable(g.state),
                    writable(dD),      writable(dbias)};
  for_channel_ranges(s, [&](int64_t b, int64_t group, int64_t slice, int64_t first, int64_t last) {
    const int64_t row = b * s.tokens * s.channels, state = b * s.states * s.channels, channel = b * s.channels;
    const int64_t map = ((slice * s.batch + b) * s.groups + group) * s.tokens * s.states;
    const BackwardRows rows{base.dy + row,
                            base.checkpoints + b * s.tiles * s.states * s.channels,
                            base.du + row,
                            base.ddelta + row,
                            shifted(base.dz, row),
                            shifted(base.dB, map),
                            shifted(base.dC, map),
                            base.slice_stride,
                            base.dA + state,
                            shifted(base.dBconst, state),
                            shifted(base.dCconst, state),
                            base.dstate + state,
                            shifted(base.dD, channel),
                            shifted(base.dbias, channel)};
    scan_backward_range(rows_of(in, s, b, group), rows, first, last);
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
