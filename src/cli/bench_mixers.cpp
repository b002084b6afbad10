#include "cli/bench_mixers.h"

#include <algorithm>
#include <chrono>

#include <fmt/format.h>

#include "base/error.h"
#include "cli/progress.h"
#include "mixers/mixer.h"

namespace seqloom {
namespace {

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

double microseconds_of(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
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
  if (!options.json) {
    fmt::print("A training step, tokens/s: D = {}, batch 1, float32, one thread; median of {}\n{:<18}", options.width,
               options.repeats, "mixer");
    for (const int64_t length : options.lengths) fmt::print(" {:>10}", fmt::format("T = {}", length));
    fmt::print("\n");
  }
  for (const auto& kind : kinds_of(options)) {
    const auto mixer = default_mixer(kind, options.width);
    std::vector<double> rates;
    for (const int64_t length : options.lengths) {
      const Tensor x = torch::randn({1, length, options.width}).requires_grad_(true);
      const auto step = [&] { mixer->forward(x).sum().backward(); };
      step();  // warm-up
      std::vector<double> times;
      for (int64_t i = 0; i < options.repeats; ++i) times.push_back(microseconds_of(step));
      rates.push_back(1e6 * static_cast<double>(length) / median(times));
    }
    json.push_back({{"mixer", kind}, {"lengths", options.lengths}, {"tokens_per_second", rates}});
    if (options.json) continue;
    fmt::print("{:<18}", kind);
    for (const double rate : rates) fmt::print(" {:>10}", short_number(rate));
    fmt::print("\n");
    std::fflush(stdout);
  }
  if (options.json) fmt::print("{}\n", json.dump());
}

}  // namespace seqloom
