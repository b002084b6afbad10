// A million tokens on one machine: exact causal attention of one head, and a Mamba layer, each over T = 2^20 beside
// what the same code's speed on a short row predicts. Minutes, and 24 GB at most: long_benchmark [T]
#include <fmt/format.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>

#include "base/torch.h"
#include "io/toml.h"
#include "mixers/mixer.h"
#include "ops/varlen_attention.h"

namespace {

using torch::Tensor;

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Peak of this process's memory in GiB; 0 where the system does not say.
double peak_gib() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("VmHWM:", 0) == 0) return std::stod(line.substr(6)) / (1024 * 1024);
  }
  return 0;
}

/// Flops a second of torch's product of 1024 x 1024 matrices.
double gemm_rate() {
  const Tensor a = torch::randn({1024, 1024}), b = torch::randn({1024, 1024});
  double best = 0;
  for (int repeat = 0; repeat < 7; ++repeat) {
    const auto start = std::chrono::steady_clock::now();
    torch::mm(a, b);
    best = std::max(best, 2.0 * 1024 * 1024 * 1024 / seconds_since(start));
  }
  return best;
}

/// Seconds of causal attention over T tokens of one head of 64, queries in blocks of 2^16: each sees all keys before
/// it.
double attention_seconds(int64_t tokens, bool progress) {
  constexpr int64_t kBlock = 1 << 16;
  const auto rows = [&] { return torch::randn({tokens, 1, 64}); };
  const Tensor q = rows(), k = rows(), v = rows();
  Tensor o = torch::empty_like(q);
  const auto start = std::chrono::steady_clock::now();
  for (int64_t first = 0; first < tokens; first += kBlock) {
    const int64_t count = std::min(kBlock, tokens - first), keys = first + count;
    const auto offsets = [](int64_t rows) { return torch::tensor({int64_t{0}, rows}); };
    o.narrow(0, first, count)
        .copy_(std::get<0>(seqloom::ops::varlen_attention(q.narrow(0, first, count), k.narrow(0, 0, keys),
                                                          v.narrow(0, 0, keys), offsets(count), offsets(keys),
                                                          /*causal=*/true)));
    if (progress) fmt::print(stderr, "attention: {} of {} tokens, {:.0f} s\n", keys, tokens, seconds_since(start));
  }
  return seconds_since(start);
}

/// Seconds of a Mamba layer of width 256 over T tokens.
double mamba_seconds(int64_t tokens) {
  const auto mixer = seqloom::make_mixer(256, seqloom::parse_toml("kind = 'mamba'", "mamba"), "mamba");
  const Tensor x = torch::randn({1, tokens, 256});
  const auto start = std::chrono::steady_clock::now();
  mixer->forward(x);
  return seconds_since(start);
}

void report(const std::string& what, double seconds, double predicted, const std::string& by) {
  fmt::print("{}: {:.1f} s; {:.1f} s by {}; peak memory so far {:.1f} GiB\n", what, seconds, predicted, by, peak_gib());
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t tokens = argc > 1 ? std::strtoll(argv[1], nullptr, 10) : int64_t{1} << 20;
  if (argc > 2 || tokens < 1) {
    fmt::print(stderr, "long_benchmark [T]: T is a number of tokens, 1048576 when left out\n");
    return 2;
  }
  setenv("THP_MEM_ALLOC_ENABLE", "1", /*overwrite=*/0);  // huge pages, as the command line has them
  const torch::NoGradGuard no_grad;
  fmt::print("T = {}, {} threads, float32\n", tokens, torch::get_num_threads());
  const int64_t few = std::min<int64_t>(tokens, 16384);
  mamba_seconds(few);
  const double scale = static_cast<double>(tokens) / static_cast<double>(few), mamba = mamba_seconds(few);
  report("mamba layer, D = 256", mamba_seconds(tokens), mamba * scale, fmt::format("T times as long as {}", few));
  const double flops = 2.0 * 64 * static_cast<double>(tokens) * static_cast<double>(tokens);
  const double floor = flops / gemm_rate(), attention = attention_seconds(few, false);
  report("exact causal attention, one head of 64", attention_seconds(tokens, true), attention * scale * scale,
         fmt::format("T^2 times as long as {}; {:.1f} s at the rate of a matrix product", few, floor));
  return 0;
}
