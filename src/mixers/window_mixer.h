#pragma once
#include <string>

#include "mixers/mixer.h"

namespace seqloom {

/// The real tokens of a batch, moved to the front of their rows and followed by zeros. For mixers that look back a
/// number of tokens: wherever padding stands, the token before is then the one in front.
class RealTokens {
 public:
  RealTokens(const Tensor& x, const Layout& layout);

  const Tensor& x() const { return x_; }  // [B, T, D]
  /// Real tokens of each row, [B] int64.
  const Tensor& lengths() const { return lengths_; }
  /// Whether there is no padding: all lengths are T.
  bool full() const { return !places_.defined(); }
  /// y [B, T, ...], one for each of x's tokens, back in the order of the batch.
  Tensor restore(const Tensor& y) const;

 private:
  Tensor x_, lengths_;
  Tensor places_;  // [B, T], where in x_ a token of the batch went
};

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
  /// The inputs before x's first token, [B, W, D]. Throws UsageError where the memory has others.
  Tensor before(const Tensor& x, const Memory& memory) const;
  void remember(const RealTokens& tokens, Memory& memory) const;

  Memory identity_element(int64_t batch) const override;
  Memory element(const Tensor& x, Memory& memory) override;
  Memory combine_elements(const Memory& left, const Memory& right) const override;
  void apply_element(const Memory& element, Memory& memory) override;

 private:
  int64_t window_;
  std::string name_;
};

/// The mixing matrices of a convolution over tokens: taps [H, L] -> [H, T, T] with taps[h, i - t + current] at (t, i).
Tensor toeplitz_matrix(const Tensor& taps, int64_t tokens, int64_t current);

}  // namespace seqloom
