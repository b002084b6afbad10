#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "base/torch.h"
#include "io/safetensors.h"

namespace seqloom {

/// What a mixer (or a stack of them) keeps of the tokens it has read: named tensors, each with the batch as its first
/// dimension, and children for the parts of a stack. A first-class value: it can be saved, forked, selected by row and
/// measured. Copies are explicit (`clone`), because a shallow copy of a growing cache would be written to twice.
class Memory {
 public:
  Memory() = default;
  Memory(Memory&&) = default;
  Memory& operator=(Memory&&) = default;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  /// Tokens read so far, the position of the next one. Padding is none; where rows have read different numbers of
  /// tokens, this is the most of them.
  int64_t tokens = 0;

  /// The tokens that each row has read, [B] int64 for `like` [B, ...].
  torch::Tensor counts(const torch::Tensor& like) const;
  void set_counts(const torch::Tensor& counts);
  /// Whether all rows have read the same number of tokens.
  bool even() const { return !behind_.defined(); }
  /// `count` more tokens were read, of which keep [B, count] bool are real (undefined: all).
  void advance(int64_t count, const torch::Tensor& keep);
  /// The counts of all parts of the tree, [B, parts] int64, for whoever keeps memories as tensors; and back.
  torch::Tensor tree_counts(const torch::Tensor& like) const;
  void set_tree_counts(const torch::Tensor& counts);

  torch::Tensor& operator[](const std::string& name) { return tensors_[name]; }
  /// Throws Error when there is no such tensor.
  const torch::Tensor& at(const std::string& name) const;
  bool contains(const std::string& name) const { return tensors_.count(name) > 0; }
  Memory& child(const std::string& name) { return children_[name]; }
  /// Throws Error when there is no such child.
  const Memory& child(const std::string& name) const;
  const TensorMap& tensors() const { return tensors_; }
  const std::map<std::string, Memory>& children() const { return children_; }

  /// A memory of the same structure and counts with f of every tensor.
  Memory map(const std::function<torch::Tensor(const torch::Tensor&)>& f) const;
  /// The same with f(own, other's) for two memories of one structure.
  Memory zip(const Memory& other,
             const std::function<torch::Tensor(const torch::Tensor&, const torch::Tensor&)>& f) const;
  /// An independent deep copy, cut off from the autograd graph: a fork of the stream.
  Memory clone() const;
  /// The memory of rows index[0], index[1], ...; `index` [R] int64. For beams and for batching streams.
  Memory select_rows(const torch::Tensor& index) const;
  /// Bytes that the tensors occupy, spare capacity of growing caches included.
  int64_t bytes() const;
  /// The tensors of the whole tree by dotted name, "layers.0.S".
  TensorMap flatten() const;

 private:
  void add_parts(std::vector<Memory*>& parts);

  torch::Tensor behind_;  // [B] int64, how much fewer than `tokens` each row has read; undefined: none
  TensorMap tensors_;
  std::map<std::string, Memory> children_;
};

/// Rows [B, ...] of `a` where chosen [B], of `b` elsewhere.
torch::Tensor rows_of(const torch::Tensor& chosen, const torch::Tensor& a, const torch::Tensor& b);
/// The same of two memories of one structure.
Memory rows_of(const torch::Tensor& chosen, const Memory& a, const Memory& b);

/// The name of the i-th of several tensors, "momentum.0".
std::string numbered(const std::string& name, size_t i);

/// Throws UsageError when some tensor grows with the tokens: "`where`: its memory grows with the tokens (k is ... when
/// empty), `therefore`".
void check_fixed_size(const Memory& empty, const std::string& where, const std::string& therefore);

/// What a run of tokens does to any memory that it is appended to (see ScannableMixer). It has the same parts.
using Summary = Memory;

/// Writes a memory as a safetensors file; `metadata` is the caller's (which model it belongs to).
void save_memory(const std::string& path, const Memory& memory, Metadata metadata);

/// Reads a memory that has the structure of `empty`: the same tensor names, types and shapes; a dimension that is 0 in
/// `empty` grows with the stream and may have any length. Throws Error naming the file and the part that differs.
Memory load_memory(const std::string& path, const Memory& empty);

/// Appends `fresh` to `cache` along `dim` and keeps the last `keep` entries (all when keep < 0). Without gradients the
/// cache grows in place inside spare capacity, so that appending one token costs O(1) amortised, and a bounded cache
/// occupies at most twice its size. The result is in time order; the caller must hold no other use of `cache`.
torch::Tensor append(const torch::Tensor& cache, const torch::Tensor& fresh, int64_t dim, int64_t keep = -1);
/// The same without gradients, where the last `added` entries are unset: the caller writes them.
torch::Tensor grown(const torch::Tensor& cache, int64_t added, int64_t dim, int64_t keep = -1);

/// The place where `memory` stands, to go back to: moved over the memory later, it undoes what was read since. `empty`
/// is the memory before the first token. What has a fixed size is copied. A cache that grows writes behind its entries
/// only, so that its present view is enough, as long as nothing but the memory goes on from it.
Memory place_of(const Memory& memory, const Memory& empty);

/// Undoes all but the first `keep` tokens that were read since `memory` stood at `place`, if it is made of nothing but
/// caches that got an entry for each token; returns false, and does nothing, if it is not.
bool cut_back(Memory& memory, const Memory& place, int64_t keep);

}  // namespace seqloom
