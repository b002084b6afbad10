#pragma once
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "mixers/cacheable_memory.h"
#include "mixers/caching.h"
#include "mixers/columns.h"
#include "mixers/mixer.h"

namespace seqloom {

struct MemoryCachingOptions : CachingOptions {
  Config of = Config::object();
  std::string memory = "linear", qk_norm = "l2";
  int64_t heads = 4, memory_depth = 2, chunk = 16;
  std::optional<int64_t> dim_head, memory_hidden;
  bool residual = false;
  double retain = 1, beta = 0, lam = 1, momentum = 0.9, lr = 0.01;

  void describe(Fields& f);
};

/// Memory Caching (Behrouz et al. 2026, arXiv 2602.24281): the sequence is cut into segments, the memory at the end of
/// each is kept, and every token reads its running memory and all kept ones:
///   y_t = sum_i g_t^i M_i(q_t),   g_t = softmax_i <u_t, c_i>,   u = x W_u,   c_i = mean of the segment's keys
/// (`grm`; for the other ways of mixing see memory_weights). A token writes first, then reads. This class has the inner
/// memories of cacheable_memory.h; `of` caches the memory of any registered mixer (CachedMixer).
///
/// The N kept memories of a linear memory are read by one product with [N K, V], the running one by the causal product
/// of its segment; segments that restart are parallel, also for deep memories.
///
/// Memory: cache.j [B, H, N, out, in], the last entry the running one; context [B, H, N, d]; count [B, N] int64, tokens
/// behind each entry (0: none in this row); pool [B, H, d], sum of the running segment's keys; extra.j: what the
/// running memory needs besides.
class MemoryCaching final : public CausalMixer {
 public:
  using Options = MemoryCachingOptions;
  static constexpr const char* about =
      "a recurrent memory kept at the end of every segment; each token reads all of them by gates (Memory Caching, "
      "Behrouz et al. 2026)";
  static constexpr const char* trials[] = {
      "heads = 2\nsegment = 5",
      "heads = 2\nsegment = 4\naggregate = 'residual'\nsegment_init = 'checkpoint'\nretain = 0.9\nqk_norm = 'none'",
      "heads = 3\nmemory = 'swla'\nbeta = 0.3\nlam = 0.7\nretain = 0.8\nsegment = 3\naggregate = 'ssc'\ntop_k = 2",
      "heads = 2\nmemory = 'swla'\nbeta = 0.3\nsegment = 7\nsegment_init = 'checkpoint'\ncontext = 'sum_key'\n"
      "temperature = 4",
      "heads = 2\nmemory = 'dla'\nsegment = 6\naggregate = 'soup'\nmomentum = 0.5\nmemory_hidden = 9\nlr = 0.05\n"
      "chunk = 1",
      "heads = 2\nmemory = 'titans'\nsegment = 7\naggregate = 'soup'\nmomentum = 0.5\nmemory_hidden = 9\nlr = 0.05\n"
      "chunk = 3",
      "heads = 2\nmemory = 'titans'\nsegment = 8\nsegment_init = 'checkpoint'\nresidual = true\nretain = 0.95\n"
      "momentum = 0.6\nlr = 0.05\nchunk = 4",
      "heads = 2\nmemory = 'titans'\ndim_head = 5\nsegment = 4\naggregate = 'ssc'\nmax_caches = 3\nmomentum = 0\n"
      "lr = 0.05",
      "of = { kind = 'gla', heads = 2, use_short_conv = false }\nsegment = 8",
      "of = { kind = 'linear_attention', heads = 2 }\nsegment = 9\naggregate = 'ssc'\nsegment_init = 'checkpoint'",
      "of = { kind = 'gated_deltanet', heads = 2, head_dim = 4, use_short_conv = false }\nsegment = 12\n"
      "aggregate = 'residual'\nmax_caches = 2",
      "of = { kind = 'mamba', state = 4 }\nsegment = 7\naggregate = 'mean'",
      "of = { kind = 'linear_attention', heads = 2, normalize = false }\nsegment = 10\naggregate = 'soup'",
      "of = { kind = 'titans', heads = 2, chunk = 4 }\nsegment = 6",
      "of = { kind = 'titans', heads = 2, chunk = 4 }\nsegment = 6\naggregate = 'soup'",
      "of = { kind = 'gla', heads = 2 }\nsegment = 8\naggregate = 'soup'\nsegment_init = 'checkpoint'",
      "of = { kind = 'nalaformer', heads = 2 }\nsegment = 6",
      "of = { kind = 'retnet', heads = 2 }\nsegment = 5\nsegment_init = 'checkpoint'",
      "of = { kind = 'lawcat', heads = 2, rope = true }\nsegment = 7",
      "of = { kind = 'titans_mag', persistent = 2, memory = { kind = 'titans', heads = 2, chunk = 4 }, attention = { "
      "heads = 2, window = 5, position = 'rope' } }\nsegment = 6",
      "of = { kind = 'titans_mal', persistent = 1, memory = { kind = 'gla', heads = 2 }, attention = { heads = 2, "
      "window "
      "= 3 } }\nsegment = 7\nsegment_init = 'checkpoint'",
      "of = { kind = 'titans_mac', persistent = 2, memory = { kind = 'titans', heads = 2, chunk = 4 }, attention = { "
      "heads = 2 }, segment = 4 }\nsegment = 6"};

  MemoryCaching(int64_t width, const Options& options);
  Memory empty_memory(int64_t batch) const override;

  static Config from_case(Config config, const std::map<std::string, std::vector<int64_t>>& shapes);

 protected:
  Tensor read(const Tensor& x, Memory& memory, Pass& pass) override;

 private:
  /// The memories between two stretches of segments. Entries are kept ones; the running memory of a row is among them.
  struct Entries {
    std::vector<Tensor> weights;  // [B, H, N, out, in]
    Tensor context;               // [B, H, N, d]
    Tensor count;                 // [B, N] int64
  };
  struct Running {
    MemoryState state;
    Tensor pool;   // [B, H, d]
    Tensor count;  // [B] int64, tokens of the segment so far
  };

  /// The running segment at every token of a stretch.
  struct Pools {
    Tensor tokens;  // [B, S, c] int64
    Tensor sums;    // [B, H, S, c, d] of the keys
  };

  Entries closed_entries(const Memory& memory, const Tensor& phase, Running& running) const;
  void drop_unused(Entries& entries, int64_t running) const;
  Running begun(const Running& running) const;
  /// Reads x [B, S c, D] as S segments of c columns, the first, `phase` tokens old, from `start`. Rows that have read
  /// something move on.
  Tensor read_segments(const Tensor& x, const Tensor& real, int64_t segments, int64_t phase, const Running& start,
                       Entries& entries, Running& running);
  Segments project(const Tensor& x, const Tensor& real, int64_t segments, int64_t phase);
  Pools pools(const Segments& s, const Running& start) const;
  void add_entries(const SegmentReads& reads, const Pools& p, Entries& entries) const;
  Tensor gates(const Tensor& x, const Pools& p, const Entries& entries);
  void move_on(const Segments& s, const SegmentReads& reads, const Pools& p, Running& running) const;
  Tensor mix_reads(const Segments& s, const SegmentReads& reads, const Tensor& weights, const Entries& entries) const;
  void store(const Entries& entries, const Running& running, Memory& memory) const;
  int64_t memory_elements(int64_t batch) const;

  Options options_;
  int64_t head_width_;
  Linear q_proj_{nullptr}, k_proj_{nullptr}, v_proj_{nullptr}, u_proj_{nullptr}, out_proj_{nullptr};
  std::unique_ptr<CacheableMemory> cell_;
};

}  // namespace seqloom
