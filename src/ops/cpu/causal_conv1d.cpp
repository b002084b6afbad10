#include "ops/cpu/causal_conv1d.h"

#include <algorithm>

#include "ops/cpu/balanced_for.h"
#include "ops/cpu/causal_conv1d_rows.h"
#include "ops/cpu/matrix_rows.h"

namespace seqloom::ops::cpu {
namespace {

using torch::Tensor;

/// Rows that one task takes. The cut does not depend on the number of threads, so results do not either.
constexpr int64_t kRows = 256;

/// Rows [first, last) of a sequence.
struct Task {
  int64_t sequence, first, last;
};

std::vector<Task> tasks_of(const std::vector<int64_t>& offsets) {
  std::vector<Task> tasks;
  for (size_t s = 0; s + 1 < offsets.size(); ++s) {
    const int64_t tokens = offsets[s + 1] - offsets[s];
    for (int64_t first = 0; first < tokens; first += kRows) {
      tasks.push_back({static_cast<int64_t>(s), first, std::min(tokens, first + kRows)});
    }
  }
  return tasks;
}

/// Runs work(task, its number) in parallel.
template <typename Work>
void for_tasks(const std::vector<Task>& tasks, Work work) {
  std::vector<int64_t> rows;
  for (const Task& task : tasks) rows.push_back(task.last - task.first);
  balanced_for(TaskCosts(rows), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) work(tasks[i], i);
  });
}

/// Floats of one sequence's state.
int64_t state_size(const ConvInputs& in) {
  return in.state.size(1) * in.state.size(2);
}

template <typename T>
ConvRows<T> inputs_of(const ConvInputs& in, const Task& task) {
  const int64_t first = in.offsets[task.sequence];
  return {rows_of<const T>(in.x, first),
          in.state.const_data_ptr<float>() + task.sequence * state_size(in),
          in.taps.const_data_ptr<float>(),
          in.bias.defined() ? in.bias.const_data_ptr<float>() : nullptr,
          static_cast<size_t>(in.offsets[task.sequence + 1] - first),
          static_cast<size_t>(in.x.size(1)),
          static_cast<size_t>(in.taps.size(0)),
          in.silu};
}

template <typename T>
void run_forward(const ConvInputs& in, ConvOutputs& out) {
  auto* state = out.state.mutable_data_ptr<float>();
  for_tasks(tasks_of(in.offsets), [&](const Task& task, int64_t) {
    const ConvForward<T> rows{rows_of<T>(out.y, in.offsets[task.sequence]), state + task.sequence * state_size(in)};
    conv_forward_rows(inputs_of<T>(in, task), rows, task.first, task.last);
  });
}

/// sums [tasks, W + 1, E], zeros.
template <typename T>
void run_backward(const ConvInputs& in, const std::vector<Task>& tasks, const Tensor& dy, const Tensor& dlast,
                  ConvGradients& g, Tensor& sums) {
  auto *dstate = g.state.mutable_data_ptr<float>(), *sum = sums.mutable_data_ptr<float>();
  for_tasks(tasks, [&](const Task& task, int64_t i) {
    const int64_t first = in.offsets[task.sequence], state = task.sequence * state_size(in);
    const ConvBackward<T> rows{rows_of<const T>(dy, first), rows_of<T>(g.x, first),
                               dlast.const_data_ptr<float>() + state, dstate + state,
                               sum + i * sums.size(1) * sums.size(2)};
    conv_backward_rows(inputs_of<T>(in, task), rows, task.first, task.last);
  });
}

bool is_narrow(const ConvInputs& in) {
  return in.x.scalar_type() == torch::kBFloat16;
}

}  // namespace

ConvOutputs causal_conv1d_forward(const ConvInputs& in) {
  // a sequence without rows leaves its state as it was
  ConvOutputs out{torch::empty(in.x.sizes(), in.x.options()), in.state.clone()};
  (is_narrow(in) ? run_forward<uint16_t> : run_forward<float>)(in, out);
  return out;
}

ConvGradients causal_conv1d_backward(const ConvInputs& in, const Tensor& dy, const Tensor& dstate) {
  const std::vector<Task> tasks = tasks_of(in.offsets);
  const int64_t width = in.taps.size(0);
  Tensor sums = torch::zeros({static_cast<int64_t>(tasks.size()), width + 1, in.taps.size(1)}, in.taps.options());
  ConvGradients g;
  g.x = torch::empty(in.x.sizes(), in.x.options());
  g.state = dstate.clone();
  (is_narrow(in) ? run_backward<uint16_t> : run_backward<float>)(in, tasks, dy, dstate, g, sums);
  const Tensor total = sums.sum(0);
  g.taps = total.narrow(0, 0, width);
  if (in.bias.defined()) g.bias = total.select(0, width);
  return g;
}

}  // namespace seqloom::ops::cpu
