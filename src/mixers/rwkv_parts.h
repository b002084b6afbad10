#pragma once

#include <string>

#include "blocks/linear.h"
#include "mixers/layout.h"

namespace seqloom {

/// Token shift: for x [B, T, D] the token before each one; before the first stands `shift` [B, D], the last token read,
/// which is replaced by the last of x. Padding is passed over: the token before is the last real one. Packed rows have
/// a `shift` each, [S, D].
torch::Tensor previous_tokens(const torch::Tensor& x, torch::Tensor& shift, const Layout& layout);

/// [D] falling from 1 to 0: how much of the token before each channel starts with, as in RWKV.
torch::Tensor shift_ramp(int64_t width);

/// W2 act(W1 x) (+ b2): parameters `lora.0.weight` [rank, in], `lora.2.weight` [out, rank] and, with bias,
/// `lora.2.bias` [out].
class LowRank : public torch::nn::Module {
 public:
  enum class Activation { kTanh, kSigmoid, kNone };
  LowRank(int64_t in, int64_t rank, int64_t out, Activation activation, bool bias);
  torch::Tensor forward(const torch::Tensor& x);
  /// b2, for its initial values.
  torch::Tensor& bias() { return up_->bias; }

 private:
  Linear down_{nullptr}, up_{nullptr};
  Activation activation_;
};

/// GroupNorm with one group a head (weight, bias [H V]): o [B, T, H, V] -> [B, T, H V], computed in at least float32.
class HeadNorm : public torch::nn::Module {
 public:
  HeadNorm(int64_t channels, double eps);
  torch::Tensor forward(const torch::Tensor& o);

 private:
  torch::Tensor weight_, bias_;
  double eps_;
};

}  // namespace seqloom
