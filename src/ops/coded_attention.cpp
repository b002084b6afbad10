#include "ops/coded_attention.h"

#include <algorithm>

#include "ops/precision.h"
#include "ops/vector_quantize.h"

namespace seqloom::ops {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr double kHidden = -1e30;  // finite: padding, which sees nothing, must give no NaN
constexpr int64_t kLeastBlock = 32, kGroup = 512;

int64_t window(const CodedRule& rule) {
  return rule.causal ? rule.bias.size(0) : (rule.bias.size(0) + 1) / 2;
}

/// Scores [..., queries, keys] of queries and keys one by one; query 0 stands at key `offset`.
Tensor near_scores(const Tensor& q, const Tensor& k, const Tensor& codes, const CodedRule& rule, int64_t offset) {
  const auto places = codes.options();
  const Tensor distance = torch::arange(q.size(-2), places).unsqueeze(1) + offset - torch::arange(k.size(-2), places);
  const int64_t reach = window(rule) - 1, first = rule.causal ? 0 : reach;
  const Tensor inside = (rule.causal ? distance : distance.abs()) <= reach;
  const Tensor bias = widened(rule.bias).index({(distance + first).clamp(0, rule.bias.size(0) - 1)}) * inside;
  Tensor hidden = (codes < 0).unsqueeze(-2);
  if (rule.causal) hidden = hidden.logical_or(distance < 0);
  return (torch::matmul(q, k.transpose(-1, -2)) + bias).masked_fill(hidden, kHidden);
}

/// [B, blocks, L, ...] -> for each query block the `width` blocks from it on, side by side: [B, queries, width L, ...].
Tensor band(const Tensor& blocks, int64_t queries, int64_t width) {
  std::vector<Tensor> parts;
  for (int64_t r = 0; r < width; ++r) parts.push_back(blocks.narrow(1, r, queries));
  return torch::cat(parts, 2);
}

/// For query block b the sum of `initial` [B, ...] and the blocks before b, and of the blocks after b + 2 where both
/// sides are seen. blocks [B, n, ...] -> [B, queries, ...].
Tensor outside_band(const Tensor& blocks, const Tensor& initial, int64_t queries, bool causal) {
  const Tensor before = torch::cat({initial.unsqueeze(1), blocks.narrow(1, 0, queries - 1)}, 1).cumsum(1);
  if (causal) return before;
  const Tensor after = blocks.narrow(1, 3, queries - 1).flip(1).cumsum(1).flip(1);
  return before + torch::cat({after, torch::zeros_like(initial).unsqueeze(1)}, 1);
}

struct Blocked {
  Tensor o;            // [B, blocks, L, V]
  Tensor code_weight;  // what a query gives to one far token of each code, [B, blocks, L, S]
};

/// The softmax over near tokens and far codes. q [B, blocks, L, Z], near tokens [B, blocks, keys, ...], far ones
/// [B, blocks, S, ...].
Blocked attend(const Tensor& q, const CodedTokens& near, const FarTokens& far, const CodedRule& rule, int64_t offset) {
  const Tensor count = far.count.detach();
  const Tensor log_count = torch::where(count > 0, count, torch::ones({1}, count.options())).log();
  const Tensor far_scores = (torch::matmul(q, rule.codewords.transpose(0, 1)) + log_count.unsqueeze(2))
                                .masked_fill((count <= 0).unsqueeze(2), kHidden);
  const Tensor scores = torch::cat({near_scores(q, near.k, near.codes, rule, offset), far_scores}, -1);
  const auto weights = scores.softmax(-1).split_with_sizes({near.k.size(-2), count.size(-1)}, -1);
  const Tensor share = count.clamp_min(1).unsqueeze(-1);
  return {torch::matmul(weights[0], near.v) + torch::matmul(weights[1], far.vsum / share),
          weights[1].detach() / share.squeeze(-1).unsqueeze(2)};
}

/// Adds nothing to o, but gives the keys the gradient that far queries have for them: through its codeword, token j is
/// looked at by query i with weight a_ij = code_weight[i, code_j], so that with g the gradient of o
///   dk_j = sum_i a_ij (g_i . (v_j - o_i)) q_i
/// In groups of tokens: queries of the same group and the next ones are taken one by one; from those farther away
/// comes, for each code s, M_s = sum_i a_is q_i g_i^T, which costs O(S Z V) a token however many there are.
class FarKeyGradient : public torch::autograd::Function<FarKeyGradient> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& o, const Tensor& k, const Tensor& q, const Tensor& v,
                        const Tensor& code_weight, const Tensor& codes, int64_t block, bool causal) {
    context->save_for_backward({o, q, v, code_weight, codes});
    context->saved_data["block"] = block;
    context->saved_data["causal"] = causal;
    return o;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    const Tensor& g = gradients[0];
    Far far{saved[1],
            torch::cat({g, -(g * saved[0]).sum(-1, /*keepdim=*/true)}, -1),
            torch::cat({saved[2], torch::ones_like(saved[2].narrow(-1, 0, 1))}, -1),
            saved[3],
            saved[4].clamp_min(0),  // padding has no gradient to receive
            context->saved_data["block"].toInt(),
            context->saved_data["causal"].toBool()};
    variable_list all(8);
    all[0] = g;
    all[1] = far.gradient();
    return all;
  }

 private:
  struct Far {
    Tensor q, g, v;             // [B, T, Z]; [g, -g.o] and [v, 1], [B, T, V + 1]
    Tensor code_weight, codes;  // [B, T, S], [B, T]
    int64_t block;
    bool causal;

    int64_t tokens() const { return q.size(1); }
    int64_t group() const { return block * std::max<int64_t>(1, kGroup / block); }
    int64_t groups() const { return (tokens() + group() - 1) / group(); }
    Tensor part(const Tensor& x, int64_t a) const {
      return x.narrow(1, a * group(), std::min(group(), tokens() - a * group()));
    }

    Tensor gradient() const {
      const int64_t count = groups();
      std::vector<Tensor> sums;
      const auto add = [&](int64_t a, const Tensor& sum) { sums[a] = sums[a] + sum; };
      for (int64_t a = 0; a < count; ++a) {
        sums.push_back(direct(a, a));
        if (a + 1 < count) add(a, direct(a, a + 1));
        if (a > 0 && !causal) add(a, direct(a, a - 1));
      }
      Tensor M;
      for (int64_t a = count - 3; a >= 0; --a) add(a, remote(a, M = gathered(a + 2, M)));
      M = Tensor();
      for (int64_t a = 2; a < count && !causal; ++a) add(a, remote(a, M = gathered(a - 2, M)));
      return torch::cat(sums, 1);
    }

    /// What group a of keys gets from group b of queries, one by one.
    Tensor direct(int64_t a, int64_t b) const {
      const Tensor codes_a = part(codes, a), weights = part(code_weight, b);
      const Tensor weight = weights.gather(2, codes_a.unsqueeze(1).expand({-1, weights.size(1), -1}));
      const auto blocks = [&](int64_t index, int64_t size) {
        return torch::arange(index * group(), index * group() + size, codes.options()).floor_divide(block);
      };
      const Tensor apart = blocks(b, weights.size(1)).unsqueeze(1) - blocks(a, codes_a.size(1));
      const Tensor is_far = (causal ? apart : apart.abs()) >= 2;
      const Tensor sensitivity = torch::matmul(part(g, b), part(v, a).transpose(1, 2));
      return torch::matmul((sensitivity * weight * is_far).transpose(1, 2), part(q, b));
    }

    /// M [B, V + 1, S Z] with the queries of group a added.
    Tensor gathered(int64_t a, const Tensor& M) const {
      const Tensor looks = (part(code_weight, a).unsqueeze(-1) * part(q, a).unsqueeze(-2)).flatten(2);
      const Tensor added = torch::matmul(part(g, a).transpose(1, 2), looks);
      return M.defined() ? M + added : added;
    }

    Tensor remote(int64_t a, const Tensor& M) const {
      const Tensor values = part(v, a), codes_a = part(codes, a);
      std::vector<Tensor> rows;
      for (int64_t b = 0; b < M.size(0); ++b) rows.push_back(read_by_code(values[b], codes_a[b], M[b]));
      return torch::stack(rows);
    }

    /// Each token's own M_s of a row: values [n, V + 1], codes [n], M [V + 1, S Z] -> [n, Z].
    Tensor read_by_code(const Tensor& values, const Tensor& row_codes, const Tensor& M) const {
      const Tensor order = row_codes.argsort(/*stable=*/true, /*dim=*/0, /*descending=*/false);
      const Tensor sizes = row_codes.bincount({}, code_weight.size(2)).to(torch::kCPU);
      const auto sorted = values.index_select(0, order).split_with_sizes(
          torch::IntArrayRef(sizes.data_ptr<int64_t>(), static_cast<size_t>(sizes.numel())));
      const auto by_code = M.split(q.size(2), 1);
      std::vector<Tensor> parts;
      for (size_t s = 0; s < sorted.size(); ++s) {
        if (sorted[s].size(0) > 0) parts.push_back(torch::matmul(sorted[s], by_code[s]));
      }
      return torch::cat(parts).index_select(0, order.argsort(/*dim=*/0, /*descending=*/false));
    }
  };
};

/// Several blocks of queries; `block` is at least as long as the window and the tokens before the queries.
Tensor in_blocks(const Tensor& q, const CodedTokens& tokens, const FarTokens& far, const CodedRule& rule,
                 int64_t block) {
  const int64_t count = q.size(1), queries = (count + block - 1) / block, before = tokens.k.size(1) - count;
  const int64_t width = rule.causal ? 2 : 3, filled = queries * block - count;
  const auto fill = [&](const Tensor& x, int64_t front, int64_t back) {
    return torch::constant_pad_nd(x, {0, 0, front, back});
  };
  // key blocks: the one before the first query, those of the queries and, where they are seen, one after the last
  const int64_t back = filled + (width - 2) * block;
  const auto to_blocks = [&](const Tensor& x) { return x.unflatten(1, {-1, block}); };
  const CodedTokens all{to_blocks(fill(tokens.k, block - before, back)),
                        to_blocks(torch::constant_pad_nd(tokens.codes, {block - before, back}, -1)),
                        to_blocks(fill(tokens.v, block - before, back))};
  const auto [sums, counts] = sums_by_code(all.v, all.codes, rule.codewords.size(0));
  const FarTokens outside{outside_band(counts, far.count, queries, rule.causal),
                          outside_band(sums, far.vsum, queries, rule.causal)};
  const CodedTokens near{band(all.k, queries, width), band(all.codes, queries, width), band(all.v, queries, width)};
  const Blocked result = attend(to_blocks(fill(q, 0, filled)), near, outside, rule, block);
  const auto flat = [&](const Tensor& x) { return x.flatten(1, 2).narrow(1, 0, count); };
  const Tensor o = flat(result.o);
  if (!rule.far_key_gradient || !tokens.k.requires_grad()) return o;
  const auto own = [&](const Tensor& x) { return x.narrow(1, before, count); };
  return FarKeyGradient::apply(o, own(tokens.k), q.detach(), own(tokens.v).detach(), flat(result.code_weight),
                               own(tokens.codes), block, rule.causal);
}

}  // namespace

Tensor coded_attention(const Tensor& q, const CodedTokens& tokens, const FarTokens& far, const CodedRule& rule) {
  const int64_t block = std::max(window(rule), kLeastBlock), count = q.size(1), before = tokens.k.size(1) - count;
  if (count > block) return in_blocks(q, tokens, far, rule, block);
  const auto one = [](const Tensor& x) { return x.unsqueeze(1); };
  return attend(one(q), {one(tokens.k), one(tokens.codes), one(tokens.v)}, {one(far.count), one(far.vsum)}, rule,
                before)
      .o.squeeze(1);
}

Tensor coded_attention_weights(const Tensor& q, const CodedTokens& tokens, const CodedRule& rule) {
  return near_scores(q, tokens.k, tokens.codes, rule, 0).softmax(-1);
}

}  // namespace seqloom::ops
