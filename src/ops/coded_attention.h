#pragma once

#include "base/torch.h"

namespace seqloom::ops {

/// Tokens that queries may look at, keys replaced by codewords.
struct CodedTokens {
  torch::Tensor k;      // [B, n, Z], the codewords; may carry the gradient of the keys that they stand for
  torch::Tensor codes;  // [B, n] int64, -1: no token
  torch::Tensor v;      // [B, n, V]
};

/// Tokens that are too far away for a bias: all that a query needs of them.
struct FarTokens {
  torch::Tensor count;  // of each code, [B, S]
  torch::Tensor vsum;   // the sum of their values, [B, S, V]
};

struct CodedRule {
  torch::Tensor codewords;       // [S, Z]
  torch::Tensor bias;            // [W], of distances 0 .. W-1; not causal [2W-1], of i - j = -(W-1) .. W-1
  bool causal = true;            // false: all tokens see each other
  bool far_key_gradient = true;  // keys learn from far queries too; else from those of their own and the next block
};

/// o_i = sum_j softmax_j(q_i . C[code_j] + bias[i - j]) v_j, bias 0 outside of its window. q [B, T, Z], scaled; the T
/// queries are the last T of the n tokens, before which `far` lie; not causal: n = T and no far ones. -> o [B, T, V].
///
/// Softmax attention over all tokens in O(T (W + S)) (Transformer-VQ, Lingle 2023, arXiv 2309.16354): in blocks of
/// queries that see the tokens of their own and the neighbouring block one by one, and all others as S codewords with a
/// count n_s and a mean value u_s: a softmax over both with score q . C_s + log n_s for a code.
torch::Tensor coded_attention(const torch::Tensor& q, const CodedTokens& tokens, const FarTokens& far,
                              const CodedRule& rule);

/// The weights [B, T, T] of the same mixing where the tokens are all there are, quadratic in T.
torch::Tensor coded_attention_weights(const torch::Tensor& q, const CodedTokens& tokens, const CodedRule& rule);

}  // namespace seqloom::ops
