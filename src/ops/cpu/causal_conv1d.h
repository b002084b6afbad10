#pragma once

#include <cstdint>
#include <vector>

#include "base/torch.h"

namespace seqloom::ops::cpu {

/// The widest kernel that is fused.
constexpr int64_t kMaxConvWidth = 64;

/// What the fused kernel reads, token-major; R are the rows of all sequences. Undefined tensors are absent.
struct ConvInputs {
  torch::Tensor x;               // [R, E], float32 or bfloat16; rows may lie further apart than E
  torch::Tensor taps;            // [W, E]; this and what follows float32 and contiguous
  torch::Tensor bias;            // [E]
  torch::Tensor state;           // [S, W-1, E]: the inputs before each sequence
  std::vector<int64_t> offsets;  // [S + 1]: sequence s is rows offsets[s] to offsets[s + 1]
  bool silu = false;
};

struct ConvOutputs {
  torch::Tensor y;      // [R, E] in x's type
  torch::Tensor state;  // [S, W-1, E]: the last inputs of each sequence
};

/// Gradients of ConvInputs' tensors, in their shapes and types; undefined where the input is absent.
struct ConvGradients {
  torch::Tensor x, taps, bias, state;
};

ConvOutputs causal_conv1d_forward(const ConvInputs& inputs);

/// dy [R, E] in x's type, rows as of x; dstate [S, W-1, E] float32 and contiguous.
ConvGradients causal_conv1d_backward(const ConvInputs& inputs, const torch::Tensor& dy, const torch::Tensor& dstate);

}  // namespace seqloom::ops::cpu
