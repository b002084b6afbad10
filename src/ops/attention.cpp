#include "ops/attention.h"

#include <ATen/native/CPUBlas.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "ops/fused.h"
#include "ops/precision.h"
#include "ops/varlen_attention.h"

namespace seqloom::ops {
namespace {

using torch::Tensor;

constexpr double kHidden = -std::numeric_limits<double>::infinity();

/// Queries [first, last) against keys [low, high). Query i stands at key i + offset.
struct Block {
  int64_t first, last, low, high, offset;
  int64_t group = 1;  // query heads of one key head that were folded into rows

  int64_t rows() const { return last - first; }
  int64_t keys() const { return high - low; }

  /// key - query, [rows, keys] int64.
  Tensor relative(const Tensor& like) const {
    const auto options = like.options().dtype(torch::kInt64).requires_grad(false);
    const Tensor query = torch::arange(first + offset, last + offset, options);
    return torch::arange(low, high, options).unsqueeze(0) - query.unsqueeze(1);
  }
  /// [H, rows, keys] -> [1, H / group, group * rows, keys].
  Tensor by_head(const Tensor& table) const { return table.reshape({1, table.size(0) / group, -1, keys()}); }
};

/// Keys that a query must not see, broadcasting over [B, H, rows, keys]; undefined where it sees all.
Tensor hidden(const AttentionRule& rule, const Block& block, const Tensor& relative) {
  Tensor result;
  if (rule.causal) {
    result = relative > 0;
    if (rule.window) result = result.logical_or(relative <= -*rule.window);
    result = result.unsqueeze(0).unsqueeze(0);
  }
  if (!rule.keep.defined()) return result;
  const Tensor padding = rule.keep.narrow(1, block.low, block.keys()).logical_not().unsqueeze(1).unsqueeze(1);
  return result.defined() ? result.logical_or(padding) : padding;
}

/// A table by distance, [H, 2 M + 1], at relative positions -> [H, rows, keys].
Tensor at_distances(const Tensor& table, const Tensor& relative) {
  const int64_t farthest = table.size(1) / 2;
  return widened(table).index({torch::indexing::Slice(), relative.clamp(-farthest, farthest) + farthest});
}

Tensor repeated(const Tensor& kv, int64_t heads) {
  return kv.size(1) == heads ? kv : kv.repeat_interleave(heads / kv.size(1), 1);
}

/// Scores with -inf for hidden keys, [B, H, rows, keys]; at least float32.
Tensor block_scores(const Tensor& q, const Tensor& k, const AttentionRule& rule, const Block& block,
                    const Tensor& relative) {
  Tensor scores = torch::matmul(widened(q), widened(repeated(k, q.size(1))).transpose(-1, -2)) * rule.scale;
  if (rule.bias.defined()) {
    scores = scores + block.by_head(at_distances(rule.bias, relative)).to(scores.scalar_type());
  }
  if (rule.softcap) scores = *rule.softcap * torch::tanh(scores / *rule.softcap);
  const Tensor mask = hidden(rule, block, relative);
  return mask.defined() ? scores.masked_fill(mask, kHidden) : scores;
}

/// 0 where m is the identity's -inf, so that -inf - m stays -inf.
Tensor finite(const Tensor& m) {
  return torch::where(m.isfinite(), m, torch::zeros_like(m));
}

Tensor divided(const Tensor& sum, const Tensor& total) {
  return sum / torch::where(total > 0, total, torch::ones_like(total));
}

/// Softmax by hand, for what the fused kernel cannot do; 0 in rows that see nothing.
Tensor block_weights(const Tensor& q, const Tensor& k, const AttentionRule& rule, const Block& block) {
  const Tensor relative = block.relative(q);
  const Tensor scores = block_scores(q, k, rule, block, relative);
  const Tensor e = (scores - finite(scores.detach().amax(-1, /*keepdim=*/true))).exp();
  const Tensor weights = divided(e, e.sum(-1, /*keepdim=*/true));
  if (!rule.multiplier.defined()) return weights;
  return weights * block.by_head(at_distances(rule.multiplier, relative)).to(weights.scalar_type());
}

/// The fused kernel of torch; it gives 0 for a row that is masked as a whole.
Tensor fused(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask, bool causal,
             double scale) {
  return at::scaled_dot_product_attention(q, k, v, mask, /*dropout_p=*/0, causal, scale, k.size(1) != q.size(1));
}

Tensor block_attention(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionRule& rule,
                       const Block& block) {
  if (block.keys() == 0) return torch::zeros_like(q);
  if (rule.softcap || rule.multiplier.defined()) {
    const Tensor weights = block_weights(q, k, rule, block);
    return torch::matmul(weights, widened(repeated(v, q.size(1)))).to(v.scalar_type());
  }
  const bool one_row = rule.causal && block.rows() == 1;  // its visible keys are the block's
  if (!rule.bias.defined() && !rule.keep.defined() && (one_row || !rule.causal))
    return fused(q, k, v, {}, false, rule.scale);
  const Tensor relative = block.relative(q), mask = hidden(rule, block, relative);
  const auto options = widened(q).options().requires_grad(false);
  Tensor added = rule.bias.defined() ? block.by_head(at_distances(rule.bias, relative)).to(options.dtype())
                                     : torch::zeros({1}, options);
  if (mask.defined()) added = torch::where(mask, torch::full({1}, kHidden, options), added);
  return fused(q, k, v, added, false, rule.scale);
}

/// Queries a block: few enough that a mask stays below some megabytes, and with a window not many more than it.
int64_t block_rows(const AttentionRule& rule, int64_t keys) {
  constexpr int64_t kLeast = 16, kMost = 512, kMaskEntries = int64_t{1} << 22;
  const int64_t most = rule.window ? std::clamp<int64_t>(*rule.window, 64, kMost) : kMost;
  const int64_t span = rule.window ? std::min(keys, *rule.window + most) : keys;
  return std::clamp(kMaskEntries / std::max<int64_t>(span, 1), kLeast, most);
}

/// Queries [first, last) and the keys that any of them may see.
Block cut(const AttentionRule& rule, int64_t first, int64_t last, int64_t keys, int64_t offset) {
  Block block{first, last, 0, keys, offset};
  if (rule.causal) block.high = std::clamp<int64_t>(last + offset, 0, keys);
  if (rule.causal && rule.window) block.low = std::clamp<int64_t>(first + offset - *rule.window + 1, 0, block.high);
  return block;
}

/// q [B, H, 1, d] -> [B, Hkv, H / Hkv, d]: the queries of a group become rows of one product.
Tensor folded(const Tensor& q, int64_t kv_heads) {
  return q.reshape({q.size(0), kv_heads, q.size(1) / kv_heads, q.size(3)});
}

/// Whether torch multiplies bfloat16 on a matrix unit (AMX), which our kernel does not reach.
bool matrix_unit() {
  static const bool found = at::native::cpublas::could_pack(torch::kBFloat16);
  return found;
}

/// Whether the fused kernel of packed rows takes the inputs and is the faster one. It reads queries in whole vectors,
/// so that few of them, as in decoding, are better off with matrix products.
bool packs(const Tensor& q, const Tensor& k, const AttentionRule& rule) {
  constexpr int64_t kLeastQueries = 16;
  const bool masked = rule.keep.defined() || rule.window || rule.bias.defined() || rule.softcap;
  const bool types =
      q.scalar_type() == torch::kFloat32 || (q.scalar_type() == torch::kBFloat16 && (masked || !matrix_unit()));
  return fused_enabled() && q.is_cpu() && types && k.scalar_type() == q.scalar_type() && !rule.multiplier.defined() &&
         q.size(2) >= kLeastQueries && (rule.causal || !rule.window);
}

/// The rows of a batch as packed sequences of equal length.
Tensor packed_attention(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionRule& rule) {
  const auto rows = [](const Tensor& x) { return x.transpose(1, 2).flatten(0, 1); };
  const auto offsets = [](const Tensor& x) { return torch::arange(x.size(0) + 1, torch::kInt64) * x.size(2); };
  const auto some = [](const Tensor& t) { return t.defined() ? std::make_optional(t) : std::nullopt; };
  const auto keep = rule.keep.defined() ? std::make_optional(rule.keep.flatten()) : std::nullopt;
  const Tensor o = std::get<0>(varlen_attention(rows(q), rows(k), rows(v), offsets(q), offsets(k), rule.causal,
                                                rule.window, rule.scale, keep, some(rule.bias), rule.softcap));
  return o.unflatten(0, {q.size(0), q.size(2)}).transpose(1, 2);
}

}  // namespace

Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionRule& rule) {
  if (packs(q, k, rule)) return packed_attention(q, k, v, rule);
  const int64_t tokens = q.size(2), keys = k.size(2), offset = rule.causal ? keys - tokens : 0;
  const bool plain = !rule.bias.defined() && !rule.softcap && !rule.multiplier.defined() && !rule.keep.defined();
  if (plain && rule.causal && tokens > 1 && offset == 0 && (!rule.window || *rule.window >= keys)) {
    return fused(q, k, v, {}, /*causal=*/true, rule.scale);
  }
  const int64_t group = tokens == 1 ? q.size(1) / k.size(1) : 1;
  const int64_t rows = plain && !rule.causal ? tokens : block_rows(rule, keys);
  std::vector<Tensor> outputs;
  for (int64_t first = 0; first < tokens; first += rows) {
    Block block = cut(rule, first, std::min(tokens, first + rows), keys, offset);
    block.group = group;
    const Tensor queries = q.narrow(2, first, block.rows());
    outputs.push_back(block_attention(group > 1 ? folded(queries, k.size(1)) : queries,
                                      k.narrow(2, block.low, block.keys()), v.narrow(2, block.low, block.keys()), rule,
                                      block));
  }
  const Tensor o = outputs.size() == 1 ? outputs.front() : torch::cat(outputs, 2);
  return group > 1 ? o.reshape(q.sizes()) : o;
}

Tensor attention_weights(const Tensor& q, const Tensor& k, const AttentionRule& rule) {
  const Block all{0, q.size(2), 0, k.size(2), rule.causal ? k.size(2) - q.size(2) : 0};
  return block_weights(q, k, rule, all);
}

SoftmaxPartial attention_partial(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionRule& rule,
                                 int64_t offset) {
  if (k.size(2) == 0) {  // the identity
    const auto options = widened(q).options().requires_grad(false);
    const auto shape = q.sizes().slice(0, 3);
    return {torch::full(shape, kHidden, options), torch::zeros(shape, options), torch::zeros(q.sizes(), options)};
  }
  const Block all{0, q.size(2), 0, k.size(2), offset};
  const Tensor relative = all.relative(q);
  const Tensor scores = block_scores(q, k, rule, all, relative);
  SoftmaxPartial partial;
  partial.m = scores.amax(-1);
  const Tensor e = (scores - finite(partial.m).unsqueeze(-1)).exp();
  partial.u = e.sum(-1);  // the multiplier is no part of the normaliser
  Tensor factors = e;
  if (rule.multiplier.defined()) factors = e * all.by_head(at_distances(rule.multiplier, relative)).to(e.scalar_type());
  partial.w = torch::matmul(factors, widened(repeated(v, q.size(1))));
  return partial;
}

SoftmaxPartial merge(const SoftmaxPartial& a, const SoftmaxPartial& b) {
  const Tensor m = torch::maximum(a.m, b.m), reference = finite(m);
  const Tensor from_a = (a.m - reference).exp(), from_b = (b.m - reference).exp();
  return {m, a.u * from_a + b.u * from_b, a.w * from_a.unsqueeze(-1) + b.w * from_b.unsqueeze(-1)};
}

Tensor value(const SoftmaxPartial& partial) {
  return divided(partial.w, partial.u.unsqueeze(-1));
}

}  // namespace seqloom::ops
