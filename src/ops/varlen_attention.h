#pragma once

#include <cstdint>
#include <optional>
#include <tuple>

#include "base/torch.h"

namespace seqloom::ops {

/// Exact attention of packed rows: sequence r is rows cu_seqlens[r] .. cu_seqlens[r + 1] of q [Nq, H, d] and of k, v
/// [Nk, Hkv, d] (head h reads key head h / (H / Hkv)), and sees no other. cu_seqlens [R + 1] int64 or int32. Causal:
/// the queries are the last of the keys, query i of n stands at key i + m - n of m; with `window` it sees the last
/// `window` keys up to there; else it stands at key i. scale: none is d^-0.5; keep [Nk] bool, false: nobody sees the
/// key. bias [H, 2 M + 1] is added to the scores by distance, entry M + j - i for a query at i and a key at j, its ends
/// for what lies beyond; softcap c: then scores become c tanh(score / c).
/// Returns o [Nq, H, d], 0 where nothing is seen, and the logarithm of the sum of e^score, lse [Nq, H] in at least
/// float32, -inf where nothing is seen (see attention_merge.h); gradients flow through both. Fused for float32 and
/// bfloat16 on a CPU, in memory linear in the rows. Throws UsageError for wrong shapes and offsets.
std::tuple<torch::Tensor, torch::Tensor> varlen_attention(
    const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v, const torch::Tensor& cu_seqlens_q,
    const torch::Tensor& cu_seqlens_k, bool causal = false, std::optional<int64_t> window = {},
    std::optional<double> scale = {}, const std::optional<torch::Tensor>& keep = {},
    const std::optional<torch::Tensor>& bias = {}, std::optional<double> softcap = {});

}  // namespace seqloom::ops
