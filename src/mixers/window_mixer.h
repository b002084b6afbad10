#pragma once
#include <string>

#include "mixers/columns.h"
#include "mixers/mixer.h"

namespace seqloom {

/// A mixer whose memory is its last W inputs, [B, W, D], oldest first, zero where there was no token yet. What a run of
/// tokens does to it is to append them: its element is x [B, n, D], the run's last n <= W tokens (a truncated free
/// monoid). Padding is not remembered.
class WindowMixer : public ScannableMixer {
 public:
  Memory empty_memory(int64_t batch) const override;

 protected:
  /// `name` is that of the memory's tensor.
  WindowMixer(int64_t width, int64_t window, std::string name);

  int64_t window() const { return window_; }
  /// The inputs before x's first token, [B, W, D]; of packed rows, [S, W, D]. Throws UsageError where the memory has
  /// others.
  Tensor before(const Tensor& x, const Layout& layout, const Memory& memory) const;
  /// `fresh` are x's columns.
  void remember(const Tensor& fresh, const Columns& columns, Memory& memory) const;

  Memory identity_element(int64_t batch) const override;
  Memory element(const Tensor& x, Memory& memory, Pass& pass) override;
  Memory combine_elements(const Memory& left, const Memory& right) const override;
  void apply_element(const Memory& element, Memory& memory) override;

 private:
  int64_t window_;
  std::string name_;
};

/// The mixing matrices of a convolution over tokens: taps [H, L] -> [H, T, T] with taps[h, i - t + current] at (t, i).
Tensor toeplitz_matrix(const Tensor& taps, int64_t tokens, int64_t current);

}  // namespace seqloom
