#pragma once
#include "mixers/short_conv.h"
#include "mixers/window_mixer.h"

namespace seqloom {

struct GamOptions {
  int64_t num_slots = 512, kernel_size = 3;
  double score_scale = 1;
  bool bidirectional = false;

  void describe(Fields& f) {
    f.add("num_slots", num_slots, "slots S of the memory bank").at_least(1).at_most(1 << 20).also("slots");
    f.add("kernel_size", kernel_size, "kernel W of the local convolution").at_least(1).at_most(1 << 16).also("kernel");
    f.add("score_scale", score_scale, "factor on the scores of the slots").greater_than(0);
    f.add("bidirectional", bidirectional, "the convolution is centred on the token");
  }
};

/// Gated associative memory (Acharya 2025, arXiv 2509.00605): a causal depthwise convolution and a soft look-up of each
/// token in a learned bank M [S, D], mixed by two gates for each channel:
///   y_t = sigmoid(a_t) * conv(x)_t + sigmoid(c_t) * softmax(x_t M^T) M,   [a | c] = W x + b
/// The bank is knowledge, not context: it does not depend on other tokens. A token sees W - 1 tokens back, so a stack
/// of n layers sees n (W - 1); combine it with another mixer where more has to be remembered. Memory: conv [B, W-1, D],
/// the last inputs.
class Gam final : public WindowMixer {
 public:
  using Options = GamOptions;
  static constexpr const char* about =
      "a gated sum of a short convolution and a look-up in a learned memory bank (Acharya 2025)";
  static constexpr const char* trials[] = {"num_slots = 8", "num_slots = 5\nkernel_size = 1\nscore_scale = 0.2",
                                           "num_slots = 40\nkernel_size = 4", "num_slots = 6\nbidirectional = true"};

  Gam(int64_t width, const Options& options);

  bool causal() const override { return !options_.bidirectional; }
  /// The convolution, with each channel a head.
  std::optional<MatrixForm> matrix(const Tensor& x) override;

 protected:
  Tensor mix(const Tensor& x, Pass& pass) override;
  bool takes_packed() const override { return true; }
  Tensor read(const Tensor& x, Memory& memory, Pass& pass) override;

 private:
  Tensor gated(const Tensor& local, const Tensor& x);
  Tensor looked_up(const Tensor& x) const;  // softmax(x M^T) M
  /// The tap of the convolution that stands at the token itself.
  int64_t current_tap() const { return options_.bidirectional ? window() / 2 : window(); }

  Options options_;
  std::shared_ptr<ShortConv> causal_conv_;
  Tensor memory_bank_;
  Linear gate_{nullptr};
};

}  // namespace seqloom
