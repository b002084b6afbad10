#include "cli/bench_stream.h"

#include <algorithm>
#include <chrono>

#include <fmt/format.h>

#include "base/error.h"
#include "io/toml.h"
#include "mixers/mixer.h"

namespace seqloom {
namespace {

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

/// A mixer with the options of its first trial, or null where it does not stream.
std::shared_ptr<CausalMixer> streaming_mixer(const std::string& kind, int64_t width) {
  Config table = parse_toml(mixers().get(kind).trials.front(), kind);
  table["kind"] = kind;
  const auto mixer = std::dynamic_pointer_cast<CausalMixer>(make_mixer(width, table, kind));
  return mixer != nullptr && mixer->causal() ? mixer : nullptr;
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

StreamRow measure(const std::string& kind, CausalMixer& mixer, const StreamBench& options) {
  std::vector<Memory> memories;
  for (const int64_t position : options.positions) memories.push_back(read_tokens(mixer, options.width, position));
  StreamRow row{kind, {}, {}, {}};
  for (const Memory& memory : memories) row.bytes.push_back(memory.bytes());
  std::vector<std::vector<double>> times(memories.size()), ratios(memories.size());
  for (int64_t turn = 0; turn <= options.tokens; ++turn) {
    const Tensor x = torch::randn({1, 1, options.width});
    for (size_t i = 0; i < memories.size(); ++i) {
      const auto start = std::chrono::steady_clock::now();
      mixer.extend(x, memories[i]);
      const double us = std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
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

void print_rows(const std::vector<StreamRow>& rows, const StreamBench& options) {
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

void bench_stream(const StreamBench& options) {
  const torch::NoGradGuard no_grad;
  torch::set_num_threads(1);
  std::vector<StreamRow> rows;
  Config json = Config::array();
  for (const auto& kind : options.kinds.empty() ? mixers().names() : options.kinds) {
    const auto mixer = streaming_mixer(kind, options.width);
    if (mixer == nullptr && !options.kinds.empty()) misuse("{} does not stream: it is not causal", kind);
    if (mixer == nullptr) continue;
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

}  // namespace seqloom
