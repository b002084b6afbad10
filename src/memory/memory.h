#pragma once

#include <cstdint>
#include <map>
#include <string>

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

  /// Tokens read so far. The position of the next token.
  int64_t tokens = 0;

  torch::Tensor& operator[](const std::string& name) { return tensors_[name]; }
  /// Throws Error when there is no such tensor.
  const torch::Tensor& at(const std::string& name) const;
  bool contains(const std::string& name) const { return tensors_.count(name) > 0; }
  Memory& child(const std::string& name) { return children_[name]; }
  /// Throws Error when there is no such child.
  const Memory& child(const std::string& name) const;
  const TensorMap& tensors() const { return tensors_; }
  const std::map<std::string, Memory>& children() const { return children_; }

  /// An independent deep copy, cut off from the autograd graph: a fork of the stream.
  Memory clone() const;
  /// The memory of rows index[0], index[1], ...; `index` [R] int64. For beams and for batching streams.
  Memory select_rows(const torch::Tensor& index) const;
  /// Bytes that the tensors occupy, spare capacity of growing caches included.
  int64_t bytes() const;
  /// The tensors of the whole tree by dotted name, "layers.0.S".
  TensorMap flatten() const;

 private:
  TensorMap tensors_;
  std::map<std::string, Memory> children_;
};

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

}  // namespace seqloom
