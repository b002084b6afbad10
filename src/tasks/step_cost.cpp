#include <algorithm>
#include <cmath>
#include <ctime>
#include <vector>

#include "tasks/measurement.h"

namespace seqloom {
namespace {

using torch::Tensor;

struct StepCostOptions {
  int64_t eval_rows = 5;
  std::vector<double> lengths = {1024, 2048, 4096, 8192};

  void describe(Fields& f) {
    f.add("eval_rows", eval_rows, "rows that are timed one by one; the median counts").at_least(1).at_most(1000);
    f.add("lengths", lengths, "tokens T of a row, each a metric ms@T; the last two give the metric growth")
        .at_least(1)
        .at_most(1 << 24);
  }
};

/// One thread while it lives.
class OneThread {
 public:
  OneThread() : before_(at::get_num_threads()) { at::set_num_threads(1); }
  ~OneThread() { at::set_num_threads(before_); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int before_;
};

/// What a training step of one mixer costs, forward and backward of x [1, T, D] on one thread, in milliseconds of the
/// processor's time: other work on the machine counts little.
class StepCostTask final : public Measurement {
 public:
  StepCostTask(const Config& recipe, const std::string& name)
      : Measurement(recipe, name, "step_cost"),
        options_(read_options<StepCostOptions>(recipe["task"], name + ": task", {"kind"})) {
    if (options_.lengths.size() < 2) misuse("{}: task.lengths: expected at least two, to compare them", name);
    for (const double length : options_.lengths) {
      if (length != std::floor(length)) misuse("{}: task.lengths: {} is not a whole number", name, length);
    }
  }

  std::string main_metric() const override { return "ms"; }

  std::map<std::string, double> evaluate() override {
    const torch::AutoGradMode gradients(true);
    const OneThread one_thread;
    std::map<std::string, double> metrics;
    std::vector<double> costs;
    for (const double length : options_.lengths) {
      costs.push_back(milliseconds(static_cast<int64_t>(length)));
      metrics[fmt::format("ms@{:.0f}", length)] = costs.back();
    }
    metrics["growth"] = costs.back() / costs[costs.size() - 2];
    return metrics;
  }

 private:
  double milliseconds(int64_t length) const {
    std::vector<double> times;
    for (int64_t i = 0; i <= options_.eval_rows; ++i) {
      const Tensor x = torch::randn({1, length, mixer().width()}).requires_grad_(true);
      const std::clock_t start = std::clock();
      mixer().forward(x).sum().backward();
      if (i > 0) times.push_back(1e3 * static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC);  // 0: a warm-up
    }
    mixer().zero_grad();
    std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
    return times[times.size() / 2];
  }

  StepCostOptions options_;
};

const bool registered = tasks().add(
    "step_cost",
    {"what a training step of a mixer costs over lengths, without training; metrics: ms@T on one thread, growth",
     [](const Config& recipe, const std::string& name) { return std::make_unique<StepCostTask>(recipe, name); }});

}  // namespace
}  // namespace seqloom
