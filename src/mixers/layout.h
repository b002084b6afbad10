#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/torch.h"

namespace seqloom {

/// Where the real tokens of a batch are.
///   dense   x [B, T, D], all of them
///   padded  x [B, T, D], the first lengths[b] of row b
///   masked  x [B, T, D], those with keep[b, t]
///   packed  x [1, N, D], row r is tokens offsets[r] .. offsets[r+1]; no padding at all
class Layout {
 public:
  Layout() = default;
  /// lengths [B] int64. Throws UsageError for a wrong type or shape.
  static Layout padded(torch::Tensor lengths);
  /// keep [B, T] bool.
  static Layout masked(torch::Tensor keep);
  /// offsets [R + 1] int64, increasing from 0 to N.
  static Layout packed(torch::Tensor offsets);

  bool is_dense() const { return !lengths_.defined() && !keep_.defined() && !offsets_.defined(); }
  bool is_packed() const { return offsets_.defined(); }
  const torch::Tensor& offsets() const { return offsets_; }
  /// The offsets as ops take them: none unless packed.
  std::optional<torch::Tensor> cu_seqlens() const;
  /// Sequences in x of `batch` rows: R when packed.
  int64_t sequences(int64_t batch) const;
  /// The state that rows go on from; none in front of packed ones, which spares ops a tensor of zeros for each row.
  std::optional<torch::Tensor> start(const torch::Tensor& state) const;
  /// Throws UsageError unless the packed rows fill x [1, N, D].
  void check_packed(const torch::Tensor& x) const;

  /// [B, T] bool, true for real tokens; undefined when dense. Throws UsageError when B or T do not agree.
  torch::Tensor keep(int64_t batch, int64_t tokens) const;

  /// Packed x [1, N, D] -> padded [R, Tmax, D] with its layout, and back.
  torch::Tensor unpack(const torch::Tensor& x) const;
  torch::Tensor pack(const torch::Tensor& x) const;
  Layout unpacked() const;

 private:
  torch::Tensor lengths_, keep_, offsets_;
};

/// What travels beside x through a stack in one pass.
struct Pass {
  Layout layout;
  torch::Tensor positions;  // [B, T] int64 or real; undefined: how many tokens stand before (token_positions.h)
  torch::Tensor context;    // [B, S, D], another sequence to attend to
  Layout context_layout;
  std::map<std::string, torch::Tensor> values;  // handed from layer to layer, [B, T, D] as x
  std::vector<torch::Tensor> losses;            // auxiliary losses that layers add, scalars
  /// Called with inner activations when set, layer by layer: "mixer.input" and "mixer.output" [B, T, D].
  std::function<void(const std::string&, const torch::Tensor&)> watch;
};

}  // namespace seqloom
