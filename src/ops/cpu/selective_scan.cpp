#include "ops/cpu/selective_scan.h"

#include <algorithm>
#include <functional>
#include <numeric>

#include "ops/cpu/balanced_for.h"
#include "ops/cpu/matrix_rows.h"
#include "ops/cpu/selective_scan_rows.h"

namespace seqloom::ops::cpu {
namespace {

constexpr int64_t kPanelChannels = kPanel, kTileTokens = kTile;

const float* pointer(const torch::Tensor& t) {
  return t.defined() ? t.const_data_ptr<float>() : nullptr;
}
float* writable(torch::Tensor& t) {
  return t.defined() ? t.mutable_data_ptr<float>() : nullptr;
}
template <typename P>
P* shifted(P* p, int64_t by) {
  return p == nullptr ? nullptr : p + by;
}

struct Sizes {
  explicit Sizes(const ScanInputs& in)
      : sequences(in.state.size(0)),
        rows(in.u.size(0)),
        channels(in.u.size(1)),
        states(in.A.size(0)),
        groups(in.groups()),
        group_channels(channels / groups),
        panels((group_channels + kPanelChannels - 1) / kPanelChannels) {
    for (int64_t s = 0; s < sequences; ++s) {
      const int64_t tokens = in.offsets[s + 1] - in.offsets[s];
      first_tile.push_back(first_tile.back() + (tokens + kTileTokens - 1) / kTileTokens);
    }
  }
  int64_t sequences, rows, channels, states, groups, group_channels, panels;
  std::vector<int64_t> first_tile = {0};  // of each sequence, and the number of all
};

/// What one task works on: channels [begin, end) of a group, from the group's `panel`-th panel on, in one sequence.
struct Task {
  int64_t sequence, group, panel, begin, end;
};

template <typename T>
ScanRows<T> inputs_of(const ScanInputs& in, const Sizes& s, const Task& task) {
  const int64_t first = in.offsets[task.sequence], map_stride = s.groups * s.states;
  const auto map = [&](const torch::Tensor& m) {
    return m.dim() == 2 ? pointer(m) : pointer(m) + first * map_stride + task.group * s.states;
  };
  const auto stride = [&](const torch::Tensor& m) { return m.dim() == 2 ? 0 : static_cast<size_t>(map_stride); };
  return {rows_of<const T>(in.u, first),
          rows_of<const T>(in.delta, first),
          rows_of<const T>(in.z, first),
          pointer(in.A),
          pointer(in.D),
          pointer(in.bias),
          map(in.B),
          map(in.C),
          in.B.dim() == 2,
          in.C.dim() == 2,
          in.softplus,
          static_cast<size_t>(in.offsets[task.sequence + 1] - first),
          static_cast<size_t>(s.channels),
          static_cast<size_t>(s.states),
          stride(in.B),
          stride(in.C)};
}

/// Ranges of channels that a group of a sequence is cut into: as few as an even share for each thread allows.
int64_t parts_of(const Sizes& s, const std::vector<int64_t>& tokens) {
  const int64_t threads = at::get_num_threads();
  const bool ragged = std::adjacent_find(tokens.begin(), tokens.end(), std::not_equal_to<>()) != tokens.end();
  return std::min(s.panels, ragged ? threads : threads / std::gcd(s.sequences * s.groups, threads));
}

/// Runs work(Task) in parallel over sequences and ranges of channels.
template <typename Work>
void for_tasks(const ScanInputs& in, const Sizes& s, Work work) {
  std::vector<int64_t> tokens, costs;
  for (int64_t i = 0; i < s.sequences; ++i) tokens.push_back(in.offsets[i + 1] - in.offsets[i]);
  const int64_t parts = parts_of(s, tokens);
  for (const int64_t count : tokens) costs.insert(costs.end(), s.groups * parts, count + 1);
  balanced_for(TaskCosts(costs), [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      const int64_t part = index % parts, group = index / parts % s.groups;
      const int64_t panel = part * s.panels / parts, last = (part + 1) * s.panels / parts;
      const int64_t channel = group * s.group_channels;
      work(Task{index / parts / s.groups, group, panel, channel + panel * kPanelChannels,
                channel + std::min(last * kPanelChannels, s.group_channels)});
    }
  });
}

template <typename T>
void run_forward(const ScanInputs& in, const Sizes& s, ScanOutputs& out) {
  float *state = writable(out.state), *checkpoints = writable(out.checkpoints);
  for_tasks(in, s, [&](const Task& task) {
    const ForwardRows<T> rows{rows_of<T>(out.y, in.offsets[task.sequence]),
                              state + task.sequence * s.states * s.channels,
                              shifted(checkpoints, s.first_tile[task.sequence] * s.states * s.channels)};
    scan_forward_range(inputs_of<T>(in, s, task), rows, task.begin, task.end);
  });
}

/// Sums that the backward pass makes for each sequence [S, ...], and for each panel of channels and token [P, R, G, N].
struct PartialSums {
  torch::Tensor dA, dBconst, dCconst, dD, dbias, dB, dC;
};

template <typename T>
void run_backward(const ScanInputs& in, const Sizes& s, const torch::Tensor& checkpoints, const torch::Tensor& dy,
                  ScanGradients& g, PartialSums& sums) {
  float *dB = writable(sums.dB), *dC = writable(sums.dC), *dA = writable(sums.dA), *dBconst = writable(sums.dBconst),
        *dCconst = writable(sums.dCconst), *dstate = writable(g.state), *dD = writable(sums.dD),
        *dbias = writable(sums.dbias);
  for_tasks(in, s, [&](const Task& task) {
    const int64_t first = in.offsets[task.sequence], state = task.sequence * s.states * s.channels;
    const int64_t channel = task.sequence * s.channels;
    const int64_t map = ((task.panel * s.rows + first) * s.groups + task.group) * s.states;
    const BackwardRows<T> rows{rows_of<const T>(dy, first),
                               pointer(checkpoints) + s.first_tile[task.sequence] * s.states * s.channels,
                               rows_of<T>(g.u, first),
                               rows_of<T>(g.delta, first),
                               rows_of<T>(g.z, first),
                               shifted(dB, map),
                               shifted(dC, map),
                               static_cast<size_t>(s.rows * s.groups * s.states),
                               dA + state,
                               shifted(dBconst, state),
                               shifted(dCconst, state),
                               dstate + state,
                               shifted(dD, channel),
                               shifted(dbias, channel)};
    scan_backward_range(inputs_of<T>(in, s, task), rows, task.begin, task.end);
  });
}

bool is_narrow(const ScanInputs& in) {
  return in.u.scalar_type() == torch::kBFloat16;
}

}  // namespace

int64_t ScanInputs::groups() const {
  return B.dim() == 3 ? B.size(1) : C.dim() == 3 ? C.size(1) : 1;
}

ScanOutputs selective_scan_forward(const ScanInputs& in, bool keep_checkpoints) {
  const Sizes s(in);
  ScanOutputs out;
  out.y = torch::empty({s.rows, s.channels}, in.u.options());
  out.state = in.state.clone();
  if (keep_checkpoints) out.checkpoints = torch::empty({s.first_tile.back(), s.states, s.channels}, in.A.options());
  (is_narrow(in) ? run_forward<uint16_t> : run_forward<float>)(in, s, out);
  return out;
}

ScanGradients selective_scan_backward(const ScanInputs& in, const torch::Tensor& checkpoints, const torch::Tensor& dy,
                                      const torch::Tensor& dstate) {
  const Sizes s(in);
  const auto cleared = [&](bool present, torch::IntArrayRef shape) {
    return present ? torch::zeros(shape, in.A.options()) : torch::Tensor();
  };
  const auto per_token = [&](const torch::Tensor& m) {
    return m.dim() == 3 ? torch::empty({s.panels, s.rows, s.groups, s.states}, in.A.options()) : torch::Tensor();
  };
  const auto like_u = [&] { return torch::empty({s.rows, s.channels}, in.u.options()); };
  ScanGradients g;
  g.u = like_u();
  g.delta = like_u();
  if (in.z.defined()) g.z = like_u();
  g.state = dstate.clone();
  PartialSums sums{cleared(true, {s.sequences, s.states, s.channels}),
                   cleared(in.B.dim() == 2, {s.sequences, s.states, s.channels}),
                   cleared(in.C.dim() == 2, {s.sequences, s.states, s.channels}),
                   cleared(in.D.defined(), {s.sequences, s.channels}),
                   cleared(in.bias.defined(), {s.sequences, s.channels}),
                   per_token(in.B),
                   per_token(in.C)};
  (is_narrow(in) ? run_backward<uint16_t> : run_backward<float>)(in, s, checkpoints, dy, g, sums);
  const auto total = [](const torch::Tensor& t) { return t.defined() ? t.sum(0) : torch::Tensor(); };
  g.A = total(sums.dA);
  g.B = total(in.B.dim() == 3 ? sums.dB : sums.dBconst);
  g.C = total(in.C.dim() == 3 ? sums.dC : sums.dCconst);
  g.D = total(sums.dD);
  g.bias = total(sums.dbias);
  return g;
}

}  // namespace seqloom::ops::cpu
