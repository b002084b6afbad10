#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace seqloom {

/// What `seqloom bench --stream`, `--layers` and `--ragged` run: mixers alone, with their default options, on one
/// thread.
struct MixerBench {
  std::vector<std::string> kinds;                           // empty: every one
  std::vector<int64_t> positions = {128, 65536};            // --stream: how many tokens were read before
  std::vector<int64_t> lengths = {1024, 2048, 4096, 8192};  // --layers: T; --ragged: the longest row
  int64_t width = 256, tokens = 64, repeats = 3;            // D, streamed tokens that are timed, training steps
  bool json = false;
  std::string chart;  // --layers: also an SVG of the rates; empty: none
};

/// Times a streamed token at several positions and measures what a memory holds there. The positions take turns, token
/// by token, so that a disturbance of the machine meets all of them; ratios are medians over the turns.
void bench_stream(const MixerBench& options);

/// Times a training step, forward and backward of x [1, T, D], over lengths. A mixer whose step takes very long is
/// timed once, and not at longer lengths.
void bench_layers(const MixerBench& options);

/// Times a layer on rows of lengths uniform in [T / 5, T], padded to T and packed end to end, in turns: packed, the
/// time should follow the number of real tokens.
void bench_ragged(const MixerBench& options);

}  // namespace seqloom
