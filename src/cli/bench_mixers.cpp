#include "cli/bench_mixers.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include <fmt/format.h>

#include "base/error.h"
#include "cli/bench_clock.h"
#include "cli/progress.h"
#include "io/atomic_file.h"
#include "mixers/mixer.h"
#include "train/chart.h"

namespace seqloom {
namespace {

double microseconds_of(const std::function<void()>& work) {
  return 1e6 * seconds_of(work);
}

std::vector<std::string> kinds_of(const MixerBench& options) {
  return options.kinds.empty() ? mixers().names() : options.kinds;
}

std::shared_ptr<Mixer> default_mixer(const std::string& kind, int64_t width) {
  return make_mixer(width, {{"kind", kind}}, kind);
}

Memory read_tokens(CausalMixer& mixer, int64_t width, int64_t tokens) {
  constexpr int64_t kChunk = 512;
  Memory memory = mixer.empty_memory(1);
  for (int64_t t = 0; t < tokens; t += kChunk) {
    mixer.extend(torch::randn({1, std::min(kChunk, tokens - t), width}), memory);
  }
  return memory;
}

struct StreamRow {
  std::string kind;
  std::vector<double> microseconds, ratios;  // by position; ratios to the first one
  std::vector<int64_t> bytes;
};

StreamRow measure(const std::string& kind, CausalMixer& mixer, const MixerBench& options) {
  std::vector<Memory> memories;
  for (const int64_t position : options.positions) memories.push_back(read_tokens(mixer, options.width, position));
  StreamRow row{kind, {}, {}, {}};
  for (const Memory& memory : memories) row.bytes.push_back(memory.bytes());
  std::vector<std::vector<double>> times(memories.size()), ratios(memories.size());
  for (int64_t turn = 0; turn <= options.tokens; ++turn) {
    const Tensor x = torch::randn({1, 1, options.width});
    for (size_t i = 0; i < memories.size(); ++i) {
      const double us = microseconds_of([&] { mixer.extend(x, memories[i]); });
      if (turn == 0) continue;  // the first token warms up
      times[i].push_back(us);
      ratios[i].push_back(us / times[0].back());
    }
  }
  for (size_t i = 0; i < memories.size(); ++i) {
    row.microseconds.push_back(median(times[i]));
    row.ratios.push_back(median(ratios[i]));
  }
  return row;
}

void print_rows(const std::vector<StreamRow>& rows, const MixerBench& options) {
  fmt::print("One token at a time, D = {}, batch 1, float32, one thread; medians of {} tokens in turns\n{:<18}",
             options.width, options.tokens, "mixer");
  for (const int64_t position : options.positions)
    fmt::print(" {:>14} {:>12}", fmt::format("us at {}", position), "bytes");
  fmt::print(" {:>7}\n", "ratio");
  for (const auto& row : rows) {
    fmt::print("{:<18}", row.kind);
    for (size_t i = 0; i < row.bytes.size(); ++i) fmt::print(" {:>14.1f} {:>12}", row.microseconds[i], row.bytes[i]);
    fmt::print(" {:>7.2f}\n", row.ratios.back());
  }
}

/// Tokens/s of a training step at each length; NaN where it was not timed.
std::vector<double> training_rates(const std::string& kind, const MixerBench& options) {
  constexpr double kLong = 20e6;  // microseconds
  const auto mixer = default_mixer(kind, options.width);
  std::vector<double> rates(options.lengths.size(), std::nan(""));
  int64_t longest = std::numeric_limits<int64_t>::max();
  for (size_t i = 0; i < rates.size(); ++i) {
    if (options.lengths[i] > longest) continue;
    const Tensor x = torch::randn({1, options.lengths[i], options.width}).requires_grad_(true);
    const auto step = [&] { mixer->forward(x).sum().backward(); };
    const double first = microseconds_of(step);  // a warm-up, unless it is so long that it will do
    std::vector<double> times;
    if (first > kLong) times.push_back(first);
    for (int64_t n = 0; n < options.repeats && first <= kLong; ++n) times.push_back(microseconds_of(step));
    rates[i] = 1e6 * static_cast<double>(options.lengths[i]) / median(times);
    if (first > kLong) longest = options.lengths[i];
  }
  return rates;
}

std::string rates_picture(const std::vector<Series>& series, const MixerBench& options) {
  constexpr double kWidth = 860, kHeight = 600;
  const std::string title =
      fmt::format("A training step of each mixer: D = {}, batch 1, float32, one thread", options.width);
  return svg_file(kWidth, kHeight, title,
                  chart_group(series, {.title = title,
                                       .x_label = "tokens T of the row (log scale)",
                                       .y_label = "tokens/s (log scale)",
                                       .log_x = true,
                                       .log_y = true,
                                       .names = true,
                                       .bold = "attention",
                                       .width = kWidth,
                                       .height = kHeight}));
}

}  // namespace

void bench_stream(const MixerBench& options) {
  const torch::NoGradGuard no_grad;
  torch::set_num_threads(1);
  std::vector<StreamRow> rows;
  Config json = Config::array();
  for (const auto& kind : kinds_of(options)) {
    const auto mixer = std::dynamic_pointer_cast<CausalMixer>(default_mixer(kind, options.width));
    const bool streams = mixer != nullptr && mixer->causal();
    if (!streams && !options.kinds.empty()) misuse("{} does not stream: it is not causal", kind);
    if (!streams) continue;
    rows.push_back(measure(kind, *mixer, options));
    const StreamRow& row = rows.back();
    json.push_back({{"mixer", kind},
                    {"positions", options.positions},
                    {"microseconds", row.microseconds},
                    {"ratios", row.ratios},
                    {"bytes", row.bytes}});
  }
  if (options.json) {
    fmt::print("{}\n", json.dump());
  } else {
    print_rows(rows, options);
  }
}

void bench_layers(const MixerBench& options) {
  torch::set_num_threads(1);
  Config json = Config::array();
  std::vector<Series> series;
  if (!options.json) {
    fmt::print("A training step, tokens/s: D = {}, batch 1, float32, one thread; median of {}\n{:<18}", options.width,
               options.repeats, "mixer");
    for (const int64_t length : options.lengths) fmt::print(" {:>10}", fmt::format("T = {}", length));
    fmt::print("\n");
  }
  for (const auto& kind : kinds_of(options)) {
    const std::vector<double> rates = training_rates(kind, options);
    json.push_back({{"mixer", kind}, {"lengths", options.lengths}, {"tokens_per_second", rates}});
    series.push_back({kind, {}});
    for (size_t i = 0; i < rates.size(); ++i) {
      series.back().points.emplace_back(options.lengths[i], rates[i]);  // what was not timed is not drawn
    }
    if (options.json) continue;
    fmt::print("{:<18}", kind);
    for (const double rate : rates) fmt::print(" {:>10}", std::isnan(rate) ? "-" : short_number(rate));
    fmt::print("\n");
    std::fflush(stdout);
  }
  if (options.json) fmt::print("{}\n", json.dump());
  if (!options.chart.empty()) write_file_atomically(options.chart, rates_picture(series, options));
}

}  // namespace seqloom
