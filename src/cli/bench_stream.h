#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace seqloom {

/// What `seqloom bench --stream` runs.
struct StreamBench {
  std::vector<std::string> kinds;                 // mixers; empty: every one that streams
  std::vector<int64_t> positions = {128, 65536};  // how many tokens were read before
  int64_t width = 192, tokens = 64;               // D, and tokens that are timed at each position
  bool json = false;
};

/// Times a streamed token of mixers at several positions and measures what they hold there. The positions take turns,
/// token by token, so that a disturbance of the machine meets all of them; ratios are medians over the turns.
void bench_stream(const StreamBench& options);

}  // namespace seqloom
