#pragma once

#include <cstdint>
#include <optional>

#include "base/torch.h"

namespace seqloom::ops {

/// Which keys a query sees and how scores are shaped. When causal, the T queries are the last T of the S keys: query i
/// stands at key i + S - T.
struct AttentionRule {
  double scale = 1;
  bool causal = true;
  std::optional<int64_t> window;  // with causal: the last `window` keys, the query's own included
  torch::Tensor keep;             // [B, S] bool, false: nobody sees the key; undefined: all are seen
  std::optional<double> softcap;  // c tanh(s / c), after the bias
  /// By distance, [H, 2 M + 1], entry M + key - query, the ends for what lies beyond: added to the scores, or
  /// undefined.
  torch::Tensor bias;
  /// The same for a factor on the softmax's weights, which are not normalised again (URPE).
  torch::Tensor multiplier;
};

/// Softmax attention. q [B, H, T, d]; k, v [B, Hkv, S, d], head h reads key head h / (H / Hkv); -> [B, H, T, d].
/// A query that sees no key gives 0. Long inputs are worked on in blocks of queries, so that masks stay small and a
/// window costs O(T window) in time and memory.
torch::Tensor attention(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                        const AttentionRule& rule);

/// The weights that `attention` mixes values by, [B, H, T, S].
torch::Tensor attention_weights(const torch::Tensor& q, const torch::Tensor& k, const AttentionRule& rule);

/// What a run of keys contributes to queries [...]: m = max s, u = sum e^(s - m), w = sum e^(s - m) v. Partials are a
/// commutative monoid, by which attention is split over segments and machines; its identity is (-inf, 0, 0).
struct SoftmaxPartial {
  torch::Tensor m, u, w;  // [...], [...], [..., d]
};

/// The partial of one segment of the keys; query 0 stands at key `offset` of the segment, which may lie outside of it.
SoftmaxPartial attention_partial(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                                 const AttentionRule& rule, int64_t offset);
SoftmaxPartial merge(const SoftmaxPartial& a, const SoftmaxPartial& b);
/// w / u, 0 where nothing was seen; [..., d].
torch::Tensor value(const SoftmaxPartial& partial);

}  // namespace seqloom::ops
