#include <fmt/format.h>

#include "base/error.h"
#include "cli/bench_clock.h"
#include "cli/bench_mixers.h"
#include "mixers/mixer.h"

namespace seqloom {
namespace {

constexpr int64_t kRows = 8;

/// The same rows twice.
struct RaggedBatch {
  Tensor x, lengths;  // [B, T, D], [B]

  double real_part() const { return lengths.sum().item<double>() / static_cast<double>(x.size(0) * x.size(1)); }
  Layout padded() const { return Layout::padded(lengths); }
  Layout packed() const { return Layout::packed(torch::cat({torch::zeros({1}, torch::kInt64), lengths.cumsum(0)})); }
  Tensor packed_x() const { return x.index({padded().keep(x.size(0), x.size(1))}).unsqueeze(0); }
};

RaggedBatch ragged_batch(int64_t longest, int64_t width) {
  Tensor lengths = torch::randint(std::max<int64_t>(1, longest / 5), longest + 1, {kRows}, torch::kInt64);
  lengths[0] = longest;  // what the others are padded to
  return {torch::randn({kRows, longest, width}), lengths};
}

struct RaggedRow {
  std::string kind, pass;
  int64_t longest;
  double tokens, padded_seconds, packed_seconds, ratio;  // packed over padded
};

RaggedRow compare(const std::string& kind, Mixer& mixer, const RaggedBatch& batch, bool backward, int64_t repeats) {
  const torch::AutoGradMode gradients(backward);
  const auto run = [&](const Tensor& x, const Layout& layout) {
    Pass pass;
    pass.layout = layout;
    const Tensor input = x.detach().requires_grad_(backward);
    return seconds_of([&] {
      const Tensor y = mixer.forward(input, pass);
      if (backward) y.sum().backward();
    });
  };
  const Tensor packed_x = batch.packed_x();
  std::vector<double> padded, packed, ratios;
  for (int64_t turn = 0; turn <= repeats; ++turn) {
    const double slow = run(batch.x, batch.padded()), fast = run(packed_x, batch.packed());
    if (turn == 0) continue;  // the first one warms up
    padded.push_back(slow);
    packed.push_back(fast);
    ratios.push_back(fast / slow);
  }
  return {kind,
          backward ? "forward + backward" : "forward",
          batch.x.size(1),
          batch.real_part(),
          median(padded),
          median(packed),
          median(ratios)};
}

}  // namespace

void bench_ragged(const MixerBench& options) {
  torch::set_num_threads(1);
  Config json = Config::array();
  if (!options.json) {
    fmt::print(
        "{} rows of lengths in [T / 5, T], D = {}, float32, one thread; medians of {} pairs\n{:<18} {:<18} {:>6} "
        "{:>12} {:>10} {:>10} {:>11}\n",
        kRows, options.width, options.repeats, "mixer", "pass", "T", "real tokens", "padded ms", "packed ms",
        "time ratio");
  }
  for (const auto& kind : options.kinds.empty() ? std::vector<std::string>{"attention", "mamba"} : options.kinds) {
    const auto mixer = make_mixer(options.width, {{"kind", kind}}, kind);
    for (const int64_t longest : options.lengths) {
      torch::manual_seed(0);  // the same lengths for every mixer
      const RaggedBatch batch = ragged_batch(longest, options.width);
      for (const bool backward : {false, true}) {
        const RaggedRow row = compare(kind, *mixer, batch, backward, options.repeats);
        json.push_back({{"mixer", row.kind},
                        {"pass", row.pass},
                        {"longest", row.longest},
                        {"token_ratio", row.tokens},
                        {"padded_seconds", row.padded_seconds},
                        {"packed_seconds", row.packed_seconds},
                        {"time_ratio", row.ratio}});
        if (options.json) continue;
        fmt::print("{:<18} {:<18} {:>6} {:>12.2f} {:>10.1f} {:>10.1f} {:>11.2f}\n", row.kind, row.pass, row.longest,
                   row.tokens, 1e3 * row.padded_seconds, 1e3 * row.packed_seconds, row.ratio);
        std::fflush(stdout);
      }
    }
  }
  if (options.json) fmt::print("{}\n", json.dump());
}

}  // namespace seqloom
