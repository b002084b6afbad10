#pragma once

#include <tuple>

#include "base/torch.h"

namespace seqloom::ops::cpu {

/// What ops/varlen_attention.h is asked for, checked. Offsets are int64 and contiguous, on the CPU.
struct VarlenRule {
  torch::Tensor first_q, first_k;  // [R + 1], rows of sequence r are first[r] .. first[r + 1]
  torch::Tensor keep;              // [Nk] bool, contiguous; undefined: all keys are real
  bool causal;
  int64_t window;  // 0: none
  double scale;
  torch::Tensor bias =
      {};              // [H, 2M + 1] float32, contiguous, added to scores: entry M + j - i, cut off; may be undefined
  double softcap = 0;  // c: scores become c tanh(score / c); 0: none
};

// Fused kernels. q [Nq, H, d]; k, v [Nk, Hkv, d]; any strides, float32 or bfloat16; all arithmetic is float32.

/// o [Nq, H, d] and the natural logarithm of the sum of e^score, lse [Nq, H], -inf where nothing is seen; float32.
std::tuple<torch::Tensor, torch::Tensor> varlen_attention_forward(const torch::Tensor& q, const torch::Tensor& k,
                                                                  const torch::Tensor& v, const VarlenRule& rule);

/// Float32; that of the bias is undefined unless asked for.
struct VarlenGradients {
  torch::Tensor q, k, v, bias;
};

/// From the gradients of o; delta [Nq, H] = sum_c do_c o_c - dlse.
VarlenGradients varlen_attention_backward(const torch::Tensor& d_o, const torch::Tensor& q, const torch::Tensor& k,
                                          const torch::Tensor& v, const torch::Tensor& lse, const torch::Tensor& delta,
                                          const VarlenRule& rule, bool with_bias);

}  // namespace seqloom::ops::cpu
