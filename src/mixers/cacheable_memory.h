#pragma once

#include <memory>
#include <vector>

#include "base/torch.h"
#include "ops/deep_memory.h"

namespace seqloom {

/// S segments of c columns, one after the other. K = V = d.
struct Segments {
  torch::Tensor q, k, v;  // [B, H, S, c, d]; k and v are 0 where not real
  torch::Tensor real;     // [B, S, c] bool
  bool dense;             // all are real
  int64_t phase;          // tokens of the first segment before its first column
  int64_t batch() const { return q.size(0); }
  int64_t heads() const { return q.size(1); }
  int64_t count() const { return q.size(2); }
};

/// A memory between two tokens, or the ends of S segments (then with S as a third dimension).
struct MemoryState {
  std::vector<torch::Tensor> weights;  // [B, H, out, in], what is cached and read
  std::vector<torch::Tensor> extra;    // what a running memory needs besides: momentum, the last k and v
};

/// Reads the running weights of one segment's tokens, chunk by chunk.
using RunningReads = std::vector<ops::ChunkReads>;

/// What reading segments gave.
struct SegmentReads {
  torch::Tensor online;               // reads of the running memory, [B, H, S, c, d]
  MemoryState ends;                   // after each segment
  std::vector<RunningReads> running;  // of each segment; empty where the read is linear in the weights
};

/// A memory of which Memory Caching keeps copies, with constant scalars for gates.
class CacheableMemory {
 public:
  virtual ~CacheableMemory() = default;

  /// Before any token.
  virtual MemoryState initial(int64_t batch, const torch::TensorOptions& options) const = 0;
  /// Reads segments, the first from `start`, the others from the initial memory or, if `continued`, from the one
  /// before.
  virtual SegmentReads read(const Segments& s, const MemoryState& start, bool continued) const = 0;
  /// sum_i gates_i C_i(q) over N cached weights C [B, H, N, out, in]: q [B, H, n, d], gates [B, H, n, N] -> [B, H, n,
  /// d].
  virtual torch::Tensor recall(const torch::Tensor& q, const std::vector<torch::Tensor>& caches,
                               const torch::Tensor& gates) const = 0;
  /// The read of the mixed weights own_gate own + sum_i gates_i C_i of a segment's tokens, own_gate [B, H, n]. Not
  /// where the read is linear.
  virtual torch::Tensor recall_mixed(const torch::Tensor& q, const std::vector<torch::Tensor>& caches,
                                     const torch::Tensor& gates, const RunningReads& own,
                                     const torch::Tensor& own_gate) const;
  /// Whether the read is linear in the weights, so that mixing reads or weights is the same.
  virtual bool linear() const = 0;
};

/// Sliding-window linear attention over two tokens, M_t = a M_{t-1} + beta v_{t-1} k_{t-1}^T + lam v_t k_t^T, read by
/// M q; with beta = 0, lam = 1 plain linear attention with decay. Extra state: the last k and v, [B, H, d] each.
class LinearCell final : public CacheableMemory {
 public:
  LinearCell(int64_t heads, int64_t width, double retain, double beta, double lam);

  MemoryState initial(int64_t batch, const torch::TensorOptions& options) const override;
  SegmentReads read(const Segments& s, const MemoryState& start, bool continued) const override;
  torch::Tensor recall(const torch::Tensor& q, const std::vector<torch::Tensor>& caches,
                       const torch::Tensor& gates) const override;
  bool linear() const override { return true; }

 private:
  torch::Tensor powers(const torch::Tensor& exponents, const torch::TensorOptions& options) const;

  int64_t heads_, width_;
  double retain_, beta_, lam_;
};

/// A network trained by its tokens, S_t = momentum S_{t-1} - lr grad, M_t = a M_{t-1} + S_t: deep linear attention
/// (`hebbian`) or Titans. Gradients are taken at the weights before a token's chunk; a segment begins a chunk. Extra
/// state: S and, if chunk > 1, the weights before the running chunk.
class DeepCell final : public CacheableMemory {
 public:
  struct Rule {
    bool hebbian, residual;
    double retain, momentum, lr;
    int64_t chunk;
  };

  /// `initial` [H, out, in] are parameters of the layer.
  DeepCell(std::vector<torch::Tensor> initial, const Rule& rule);

  MemoryState initial(int64_t batch, const torch::TensorOptions& options) const override;
  SegmentReads read(const Segments& s, const MemoryState& start, bool continued) const override;
  torch::Tensor recall(const torch::Tensor& q, const std::vector<torch::Tensor>& caches,
                       const torch::Tensor& gates) const override;
  torch::Tensor recall_mixed(const torch::Tensor& q, const std::vector<torch::Tensor>& caches,
                             const torch::Tensor& gates, const RunningReads& own,
                             const torch::Tensor& own_gate) const override;
  bool linear() const override { return false; }

 private:
  SegmentReads read_one(const Segments& s, const MemoryState& start) const;
  SegmentReads read_in_turn(const Segments& s, const MemoryState& start) const;
  SegmentReads read_at_once(const Segments& s, const MemoryState& start) const;

  std::vector<torch::Tensor> initial_;
  Rule rule_;
};

}  // namespace seqloom
