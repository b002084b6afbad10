#include "ops/varlen_attention.h"

#include <fmt/ostream.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/error.h"
#include "ops/attention.h"
#include "ops/cpu/varlen_attention.h"
#include "ops/fused.h"
#include "ops/operator.h"
#include "ops/packing.h"
#include "ops/precision.h"
#include "ops/reference_gradient.h"

namespace seqloom::ops {
namespace {

using cpu::VarlenRule;
using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

void check_inputs(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& keep,
                  const std::optional<Tensor>& bias) {
  if (q.dim() != 3 || k.dim() != 3 || v.sizes() != k.sizes() || q.size(2) != k.size(2) || q.size(2) < 1 ||
      k.size(1) < 1 || q.size(1) % k.size(1) != 0) {
    misuse("varlen_attention: q {}, k {}, v {}: expected q [Nq, H, d] and k, v [Nk, Hkv, d], Hkv dividing H",
           fmt::streamed(q.sizes()), fmt::streamed(k.sizes()), fmt::streamed(v.sizes()));
  }
  if (!q.is_floating_point() || k.scalar_type() != q.scalar_type() || v.scalar_type() != q.scalar_type()) {
    misuse("varlen_attention: q is {}, k {}, v {}: expected one floating type", fmt::streamed(q.dtype()),
           fmt::streamed(k.dtype()), fmt::streamed(v.dtype()));
  }
  if (keep && (keep->dim() != 1 || keep->size(0) != k.size(0) || keep->scalar_type() != torch::kBool)) {
    misuse("varlen_attention: keep is {} {}, expected bool [{}]", fmt::streamed(keep->dtype()),
           fmt::streamed(keep->sizes()), k.size(0));
  }
  if (bias &&
      (bias->dim() != 2 || bias->size(0) != q.size(1) || bias->size(1) % 2 != 1 || !bias->is_floating_point())) {
    misuse("varlen_attention: bias is {} {}, expected a floating [{}, 2 M + 1]", fmt::streamed(bias->dtype()),
           fmt::streamed(bias->sizes()), q.size(1));
  }
}

/// Queries first .. last of one sequence against the keys that any of them sees, [rows, H, d] and [rows, H].
std::pair<Tensor, Tensor> reference_block(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& keep,
                                          const VarlenRule& rule, int64_t first, int64_t last) {
  const int64_t keys = k.size(0), place = rule.causal ? keys - q.size(0) : 0;
  const int64_t high = rule.causal ? std::clamp<int64_t>(last + place, 0, keys) : keys;
  const int64_t low = rule.window > 0 ? std::clamp<int64_t>(first + place - rule.window + 1, 0, high) : 0;
  AttentionRule of_block;
  of_block.scale = rule.scale;
  of_block.bias = rule.bias;
  if (rule.softcap > 0) of_block.softcap = rule.softcap;
  of_block.causal = rule.causal;
  if (rule.window > 0) of_block.window = rule.window;
  if (keep.defined()) of_block.keep = keep.slice(0, low, high).unsqueeze(0);
  const auto by_head = [](const Tensor& x, int64_t from, int64_t to) {
    return x.slice(0, from, to).transpose(0, 1).unsqueeze(0);
  };
  const SoftmaxPartial partial = attention_partial(by_head(q, first, last), by_head(k, low, high),
                                                   by_head(v, low, high), of_block, first + place - low);
  const Tensor total = torch::where(partial.u > 0, partial.u, torch::ones_like(partial.u));
  return {value(partial).squeeze(0).transpose(0, 1), (partial.m + total.log()).squeeze(0).transpose(0, 1)};
}

/// Plain tensor algebra, sequence by sequence, in blocks of queries: memory is linear without gradients.
variable_list reference(const Tensor& q, const Tensor& k, const Tensor& v, const VarlenRule& rule) {
  constexpr int64_t kEntries = int64_t{1} << 22;
  const auto *first_q = rule.first_q.const_data_ptr<int64_t>(), *first_k = rule.first_k.const_data_ptr<int64_t>();
  std::vector<Tensor> o = {widened(q).slice(0, 0, 0)}, lse = {o.front().sum(-1)};  // of the inputs' graph
  for (int64_t s = 0; s + 1 < rule.first_q.size(0); ++s) {
    const auto of_sequence = [&](const Tensor& x, const int64_t* offsets) {
      return x.slice(0, offsets[s], offsets[s + 1]);
    };
    const Tensor queries = of_sequence(q, first_q), keys = of_sequence(k, first_k), values = of_sequence(v, first_k);
    const Tensor keep = rule.keep.defined() ? of_sequence(rule.keep, first_k) : Tensor();
    const int64_t count = queries.size(0);
    const int64_t rows = std::clamp<int64_t>(kEntries / std::max<int64_t>(1, keys.size(0) * q.size(1)), 16, 512);
    for (int64_t first = 0; first < count; first += rows) {
      const auto block = reference_block(queries, keys, values, keep, rule, first, std::min(count, first + rows));
      o.push_back(block.first);
      lse.push_back(block.second);
    }
  }
  return {torch::cat(o), torch::cat(lse)};
}

/// The fused kernels; results in float32.
class FusedVarlen : public torch::autograd::Function<FusedVarlen> {
 public:
  static variable_list forward(AutogradContext* context, const Tensor& q, const Tensor& k, const Tensor& v,
                               const Tensor& first_q, const Tensor& first_k, const std::optional<Tensor>& keep,
                               const std::optional<Tensor>& bias, bool causal, int64_t window, double scale,
                               double softcap) {
    const VarlenRule rule{first_q, first_k, keep.value_or(Tensor()), causal,
                          window,  scale,   bias.value_or(Tensor()), softcap};
    const auto [o, lse] = cpu::varlen_attention_forward(q, k, v, rule);
    context->save_for_backward({q, k, v, first_q, first_k, rule.keep, o, lse, rule.bias});
    context->saved_data["causal"] = causal;
    context->saved_data["window"] = window;
    context->saved_data["scale"] = scale;
    context->saved_data["softcap"] = softcap;
    return {o, lse};
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    const Tensor &q = saved[0], &k = saved[1], &v = saved[2], &o = saved[6], &lse = saved[7];
    const VarlenRule rule{saved[3],
                          saved[4],
                          saved[5],
                          context->saved_data["causal"].toBool(),
                          context->saved_data["window"].toInt(),
                          context->saved_data["scale"].toDouble(),
                          saved[8],
                          context->saved_data["softcap"].toDouble()};
    const Tensor d_o = gradients[0].defined() ? gradients[0] : torch::zeros_like(o);
    const Tensor d_lse = gradients[1].defined() ? gradients[1] : torch::zeros_like(lse);
    variable_list all;
    if (torch::GradMode::is_enabled()) {
      all = reference_gradients(reference(q, k, v, rule), {q, k, v, rule.bias}, {d_o, d_lse});
      all.insert(all.begin() + 3, 3, Tensor());
    } else {
      const Tensor delta = (d_o * o).sum(-1) - d_lse;
      const bool with_bias = rule.bias.defined() && rule.bias.requires_grad();
      const auto g = cpu::varlen_attention_backward(d_o, q, k, v, lse, delta, rule, with_bias);
      const Tensor none;
      all = {g.q.to(q.scalar_type()), g.k.to(k.scalar_type()), g.v.to(v.scalar_type()), none, none, none, g.bias};
    }
    all.resize(11);
    return all;
  }
};

}  // namespace

std::tuple<Tensor, Tensor> varlen_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                            const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k, bool causal,
                                            std::optional<int64_t> window, std::optional<double> scale,
                                            const std::optional<Tensor>& keep, const std::optional<Tensor>& bias,
                                            std::optional<double> softcap) {
  check_inputs(q, k, v, keep, bias);
  if (softcap && !(*softcap > 0)) misuse("varlen_attention: softcap = {} must be above 0", *softcap);
  if (window && (!causal || *window < 1)) misuse("varlen_attention: window = {} needs causal and >= 1", *window);
  const VarlenRule rule{checked_offsets(cu_seqlens_q, q.size(0), "varlen_attention: cu_seqlens_q"),
                        checked_offsets(cu_seqlens_k, k.size(0), "varlen_attention: cu_seqlens_k"),
                        keep ? keep->contiguous() : Tensor(),
                        causal,
                        window.value_or(0),
                        scale.value_or(1 / std::sqrt(static_cast<double>(q.size(2)))),
                        bias ? widened(*bias).contiguous() : Tensor(),
                        softcap.value_or(0)};
  if (rule.first_q.size(0) != rule.first_k.size(0)) {
    misuse("varlen_attention: {} offsets of queries, {} of keys", rule.first_q.size(0), rule.first_k.size(0));
  }
  const bool fused = fused_enabled() && q.is_cpu() &&
                     (q.scalar_type() == torch::kFloat32 || q.scalar_type() == torch::kBFloat16) &&
                     (!bias || rule.bias.scalar_type() == torch::kFloat32);
  const auto some = [](const Tensor& t) { return t.defined() ? std::make_optional(t) : std::nullopt; };
  const variable_list both =
      fused ? FusedVarlen::apply(q, k, v, rule.first_q, rule.first_k, some(rule.keep), some(rule.bias), rule.causal,
                                 rule.window, rule.scale, rule.softcap)
            : reference(q, k, v, rule);
  return {both[0].to(q.scalar_type()), both[1]};
}

TORCH_LIBRARY_FRAGMENT(seqloom, m) {
  define(m,
         "varlen_attention(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, Tensor cu_seqlens_k, bool causal=False, "
         "int? window=None, float? scale=None, Tensor? keep=None, Tensor? bias=None, float? softcap=None) -> (Tensor, "
         "Tensor)",
         &varlen_attention, {.lower_in_autocast = true});
}

}  // namespace seqloom::ops
