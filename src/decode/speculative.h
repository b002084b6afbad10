#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "decode/stream.h"

namespace seqloom {

/// What came of the drafts.
struct SpeculationCounts {
  int64_t rounds = 0, drafted = 0, accepted = 0;
  /// Accepted part of the drafted tokens.
  double acceptance() const { return drafted == 0 ? 0 : static_cast<double>(accepted) / static_cast<double>(drafted); }
};

/// Speculative decoding (Leviathan et al. 2023, arXiv 2211.17192): a small model drafts a few tokens, which the large
/// one reads in one step, as cheaply as one token where it is the weights' way from memory that counts.
///
/// Which token stands at a position is a function of logits, seed and position (decode/sampler.h). A draft is accepted
/// exactly where it is the token that the large model draws there itself, greedily or with any sampler, so that the
/// text is the one without a draft, not only one of the same distribution. The draft model draws with the same seeds:
/// where both models give about the same probabilities, they mostly draw the same token.
///
/// A rejected token must leave no trace: both memories go back to where they stood (place_of) and read again what was
/// accepted.
class Speculation {
 public:
  /// Goes on from a stream of the large model that has read something; the draft model reads the tokens that are recent
  /// there. Throws UsageError unless both models have one vocabulary and drafts are at least 1 token long.
  Speculation(std::shared_ptr<Decoder> model, Stream stream, std::shared_ptr<Decoder> draft, int64_t draft_tokens);

  /// Makes up to `count` tokens and hands each to `emit`, until that returns false; returns how many. The stream has
  /// then read all of them.
  int64_t generate(int64_t count, const SamplerOptions& options, const std::function<bool(int64_t token)>& emit);

  Stream& stream() { return stream_; }
  const SpeculationCounts& counts() const { return counts_; }

 private:
  struct Place;

  int64_t drafts_of(int64_t count) const;
  std::vector<int64_t> drafted(int64_t first, int64_t count, const SamplerOptions& options);
  void settle(torch::ArrayRef<int64_t> tokens, size_t kept, Place& place, Place& draft_place);

  std::shared_ptr<Decoder> model_, draft_;
  int64_t draft_tokens_;
  Memory empty_, draft_empty_;
  Stream stream_, draft_stream_;
  SpeculationCounts counts_;
};

}  // namespace seqloom
