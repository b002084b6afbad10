#pragma once
#include <memory>
#include <string>
#include <vector>

#include "mixers/caching.h"
#include "mixers/columns.h"
#include "mixers/mixer.h"

namespace seqloom {

struct CachedMixerOptions : CachingOptions {
  Config of = Config::object();

  void describe(Fields& f) {
    f.add("of", of, "{ kind = ... }: the mixer whose memory is cached; it must be causal and of a fixed size");
    CachingOptions::describe(f);
  }
};

/// Memory Caching round any recurrent mixer, `{ kind = "memory_caching", of = { kind = "gla" } }`. What it reads with
/// is the mixer itself: with extend(x, C) the outputs of a copy of memory C that reads x,
///   running   y^0_t = extend(x_t, M_{t-1}),   M the memory of t's segment so far
///   cached    y^i_t = extend(x_t, C_i):       what the mixer would say, had t come right after segment i
///   y_t = sum_i g_t^i y^i_t,   g_t = softmax_i <W_u x_t, c_i> / temperature,   c_i the mean (sum) of segment i's
///   inputs
/// so that a cached read, other than in the paper's formula, contains the token's own write; copies are thrown away.
/// One gate for all heads, since their outputs are projected already. `residual` has g = 1 and `mean` g = 1 / (N + 1),
/// both no W_u, so that they also serve a mixer that was trained without caches; `soup` reads
/// extend(x_t, sum_i g_i C_i + g_0 M_{t-1}), with the M_{t-1} of a segment found by halving it.
///
/// The running memories of a segment come from one call of the mixer; its reads of N caches are n N rows of one token.
/// Memory: parts `online`, the running memory, and `cache`, whose tensors are [B, N, ...]; context [B, N, D], count [B,
/// N] int64, tokens behind each cache (0: none in this row), and cache_tokens [B, N, parts] int64, what the parts of
/// its memory had counted; pool [B, D], sum of the running segment's inputs.
///
/// Positions are the inner mixer's own, counted by its memory: those of the pass are not handed on.
class CachedMixer final : public CausalMixer {
 public:
  using Options = CachedMixerOptions;
  static constexpr const char* about = "the memory of any recurrent mixer kept at the end of every segment";

  CachedMixer(int64_t width, const Options& options);
  /// Round a mixer that is there already. `where` begins the messages that refuse one.
  CachedMixer(const std::shared_ptr<Mixer>& mixer, const CachingOptions& options, const std::string& where);
  Memory empty_memory(int64_t batch) const override;
  void after_step() override { inner_->after_step(); }
  std::vector<Tensor> without_weight_decay() const override { return inner_->without_weight_decay(); }

 protected:
  Tensor read(const Tensor& x, Memory& memory, Pass& pass) override;

 private:
  /// A stretch of one segment.
  struct Stretch {
    Tensor x, real;  // [B, n, D]; [B, n] bool or undefined
    Tensor count;    // [B, n] tokens of the segment up to each
    bool begins, ends;
  };

  void begin_segment(const Stretch& s, Memory& memory) const;
  Tensor read_stretch(const Stretch& s, Memory& memory);
  Tensor gates(const Stretch& s, const Tensor& sums, const Memory& memory);  // [B, n, N + 1]
  Tensor read_caches(const Tensor& x, const Tensor& gates, const Memory& memory);
  Memory memories_before(const Tensor& x, const Tensor& real, const Memory& start);
  Tensor read_soup(const Stretch& s, const Tensor& gates, Memory& memory);
  void keep(const Stretch& s, const Tensor& sums, Memory& memory) const;
  Tensor extend_inner(const Tensor& x, const Tensor& real, Memory& memory);

  CachingOptions options_;
  std::shared_ptr<CausalMixer> inner_;
  Linear u_proj_{nullptr};
  int64_t elements_ = 0;  // numbers in one memory of one row
};

}  // namespace seqloom
