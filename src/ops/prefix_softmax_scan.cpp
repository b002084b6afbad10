#include "ops/prefix_softmax_scan.h"

#include <fmt/ostream.h>

#include <limits>

#include "base/error.h"
#include "ops/chunks.h"
#include "ops/cpu/prefix_softmax_scan.h"
#include "ops/cpu/row_walk.h"
#include "ops/fused.h"
#include "ops/operator.h"
#include "ops/packing.h"
#include "ops/precision.h"
#include "ops/reference_gradient.h"

namespace seqloom::ops {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// Checked offsets of packed sequences; undefined without.
Tensor check_shapes(const Tensor& s, const Tensor& v, const std::optional<SoftmaxPartial>& initial, int64_t chunk,
                    const std::optional<Tensor>& cu_seqlens) {
  if (s.dim() != 3 || v.dim() != 4 || v.sizes().slice(0, 3) != s.sizes()) {
    misuse("prefix_softmax_scan: s {}, v {}: expected s [B, H, T] and v [B, H, T, d]", fmt::streamed(s.sizes()),
           fmt::streamed(v.sizes()));
  }
  if (chunk < 1) misuse("prefix_softmax_scan: chunk = {}, expected at least 1 token", chunk);
  if (cu_seqlens && s.size(0) != 1) {
    misuse("prefix_softmax_scan: s is {}, expected packed sequences [1, H, T] beside cu_seqlens",
           fmt::streamed(s.sizes()));
  }
  const Tensor offsets =
      cu_seqlens ? checked_offsets(*cu_seqlens, s.size(2), "prefix_softmax_scan: cu_seqlens") : Tensor();
  if (!initial) return offsets;
  const int64_t sequences = cu_seqlens ? offsets.size(0) - 1 : v.size(0);
  const std::vector<int64_t> sums = {sequences, v.size(1)}, values = {sequences, v.size(1), v.size(3)};
  if (initial->m.sizes() != sums || initial->u.sizes() != sums || initial->w.sizes() != values) {
    misuse("prefix_softmax_scan: the initial state is m {}, u {}, w {}, expected {} twice and {}",
           fmt::streamed(initial->m.sizes()), fmt::streamed(initial->u.sizes()), fmt::streamed(initial->w.sizes()),
           fmt::streamed(torch::IntArrayRef(sums)), fmt::streamed(torch::IntArrayRef(values)));
  }
  return offsets;
}

void check_scores(const Tensor& s) {
  if (s.numel() == 0) return;
  const auto largest = s.detach().max().item<double>();  // NaN where there is one
  if (!(largest < kInfinity)) {
    misuse("prefix_softmax_scan: a score is {}, after which no prefix has a finite softmax", largest);
  }
}

/// 0 where a maximum is -inf, that of no tokens, so that -inf - m stays -inf.
Tensor finite(const Tensor& m) {
  return torch::nan_to_num(m, /*nan=*/0, /*posinf=*/0, /*neginf=*/0);
}

SoftmaxPartial nothing(const Tensor& v, int64_t sequences) {
  const auto options = v.options().requires_grad(false);
  return {torch::full({sequences, v.size(1)}, -kInfinity, options), torch::zeros({sequences, v.size(1)}, options),
          torch::zeros({sequences, v.size(1), v.size(3)}, options)};
}

/// The same partial with a constant maximum; what m has of a gradient goes on through u and w.
SoftmaxPartial with_constant_maximum(const SoftmaxPartial& p) {
  if (!p.m.requires_grad()) return p;
  const Tensor m = p.m.detach(), one = (p.m - finite(m)).exp();
  return {m, p.u * one, p.w * one.unsqueeze(-1)};
}

/// [B, H, T, ...] -> [B, H, T/C, C, ...], the last chunk filled with `value`.
Tensor to_chunks_of(const Tensor& x, int64_t chunk, double value) {
  const int64_t tokens = x.size(2), chunks = (tokens + chunk - 1) / chunk;
  Tensor filled = x;
  if (chunks * chunk != tokens) {
    auto rest = x.sizes().vec();
    rest[2] = chunks * chunk - tokens;
    filled = torch::cat({x, torch::full(rest, value, x.options().requires_grad(false))}, 2);
  }
  return filled.unflatten(2, {chunks, chunk});
}

/// First the running maxima, which need the scores only; then in each chunk its own part of every prefix, as a product
/// with e^{s_i - m_t}; the rows of the chunks' last tokens are what the chunks add to the running (u, w).
std::pair<Tensor, SoftmaxPartial> in_chunks(const Tensor& s, const Tensor& v, const SoftmaxPartial& initial,
                                            int64_t chunk) {
  const int64_t tokens = s.size(2), size = std::min(chunk, tokens), width = v.size(3);
  const Tensor sc = to_chunks_of(s, size, -kInfinity), vc = to_chunks_of(v, size, 0);  // [B, H, N, C], [.., C, d]
  const int64_t chunks = sc.size(2);

  const Tensor in_chunk = std::get<0>(sc.detach().cummax(-1));
  const Tensor ends = torch::cat({initial.m.unsqueeze(-1), in_chunk.select(-1, size - 1)}, -1);
  const Tensor maxima = std::get<0>(ends.cummax(-1));  // [B, H, N + 1], before each chunk and after the last
  const Tensor before = maxima.narrow(-1, 0, chunks), after = maxima.narrow(-1, 1, chunks);
  const Tensor running = torch::maximum(in_chunk, before.unsqueeze(-1));  // [B, H, N, C]

  // masked before exp: above the diagonal differences may be large, and inf * 0 would poison the gradient
  const Tensor above = torch::ones({size, size}, sc.options().dtype(torch::kBool)).triu(1);
  const Tensor reference = finite(running);
  const Tensor weights = (sc.unsqueeze(-2) - reference.unsqueeze(-1)).masked_fill_(above, -kInfinity).exp_();
  const Tensor own = torch::cat({torch::matmul(weights, vc), weights.sum(-1, /*keepdim=*/true)}, -1);  // [.., C, d + 1]

  const Tensor decay = (before - finite(after)).exp().unsqueeze(-1).unsqueeze(-1);
  const Tensor start = torch::cat({initial.w, initial.u.unsqueeze(-1)}, -1).unsqueeze(-2);  // [B, H, 1, d + 1]
  const auto [carried, last] = scan_chunk_states(decay, own.narrow(-2, size - 1, 1), start);
  const Tensor carry = (before.unsqueeze(-1) - reference).exp().unsqueeze(-1);
  const Tensor sums = torch::addcmul(own, carry, carried).flatten(2, 3).narrow(2, 0, tokens);

  const Tensor total = last.squeeze(-2);
  return {value({running, sums.select(-1, width), sums.narrow(-1, 0, width)}),
          {maxima.select(-1, chunks), total.select(-1, width), total.narrow(-1, 0, width)}};
}

std::pair<Tensor, SoftmaxPartial> dense_reference(const Tensor& s, const Tensor& v, const SoftmaxPartial& initial,
                                                  int64_t chunk) {
  if (s.size(2) == 0) return {torch::zeros_like(v), initial};
  if (s.size(2) > 1) {
    auto [y, state] = in_chunks(s, widened(v), initial, chunk);
    return {y.to(v.scalar_type()), state};
  }
  const SoftmaxPartial state = merge(initial, softmax_total(s, v));
  return {value(state).unsqueeze(2).to(v.scalar_type()), state};
}

/// Packed sequences one by one; offsets are undefined without.
std::pair<Tensor, SoftmaxPartial> reference(const Tensor& s, const Tensor& v, const SoftmaxPartial& initial,
                                            int64_t chunk, const Tensor& offsets) {
  if (!offsets.defined()) return dense_reference(s, v, initial, chunk);
  const auto scores = split_sequences(s, offsets, 2), values = split_sequences(v, offsets, 2);
  std::vector<Tensor> y, m, u, w;
  for (size_t r = 0; r < scores.size(); ++r) {
    const auto row = [&](const Tensor& t) { return t.narrow(0, static_cast<int64_t>(r), 1); };
    const auto [own, state] =
        dense_reference(scores[r], values[r], {row(initial.m), row(initial.u), row(initial.w)}, chunk);
    y.push_back(own);
    m.push_back(state.m);
    u.push_back(state.u);
    w.push_back(state.w);
  }
  return {torch::cat(y, 2), {torch::cat(m), torch::cat(u), torch::cat(w)}};
}

/// s, v and the partial before them as the kernel takes them; returns y, m, u, w.
class FusedScan : public torch::autograd::Function<FusedScan> {
 public:
  static variable_list forward(AutogradContext* context, const Tensor& s, const Tensor& v, const Tensor& m,
                               const Tensor& u, const Tensor& w, const std::optional<Tensor>& offsets, int64_t chunk) {
    const Tensor cuts = offsets.value_or(Tensor());
    const cpu::SoftmaxScan scan = cpu::prefix_softmax_forward(s, v, m, u, w, numbers(cuts));
    context->save_for_backward({s, v, m, u, w, scan.y, scan.sums, cuts});
    context->saved_data["chunk"] = chunk;
    context->mark_non_differentiable({scan.m});
    return {scan.y, scan.m, scan.u, scan.w};
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    const Tensor &s = saved[0], &v = saved[1], &m = saved[2];
    if (torch::GradMode::is_enabled()) {
      const auto [y, state] = reference(s, v, {m, saved[3], saved[4]}, context->saved_data["chunk"].toInt(), saved[7]);
      variable_list all = reference_gradients({y, state.u, state.w}, {s, v, m, saved[3], saved[4]},
                                              {gradients[0], gradients[2], gradients[3]});
      all.resize(7);
      return all;
    }
    const cpu::SoftmaxScan scan{saved[5], saved[6], {}, {}, {}};
    const auto g = cpu::prefix_softmax_backward(s, v, m, scan, cpu::dense_rows(gradients[0]), gradients[2].contiguous(),
                                                gradients[3].contiguous(), numbers(saved[7]));
    return {g.s, g.v, Tensor(), g.u, g.w, Tensor(), Tensor()};
  }

  static std::vector<int64_t> numbers(const Tensor& cuts) {
    return cuts.defined() ? to_vector(cuts) : std::vector<int64_t>();
  }
};

bool kernel_takes(const Tensor& s, const Tensor& v, const SoftmaxPartial& initial) {
  const auto type = v.scalar_type();
  return fused_enabled() && v.is_cpu() && v.numel() > 0 && (type == torch::kFloat32 || type == torch::kBFloat16) &&
         s.scalar_type() == torch::kFloat32 && initial.m.scalar_type() == torch::kFloat32 &&
         initial.u.scalar_type() == torch::kFloat32 && initial.w.scalar_type() == torch::kFloat32;
}

std::pair<Tensor, SoftmaxPartial> fused(const Tensor& s, const Tensor& v, const SoftmaxPartial& initial, int64_t chunk,
                                        const Tensor& offsets) {
  const Tensor scores = s.contiguous(), values = cpu::dense_rows(v), m = initial.m.contiguous(),
               u = initial.u.contiguous(), w = initial.w.contiguous();
  if (!wants_gradient({s, v, u, w})) {
    const cpu::SoftmaxScan scan = cpu::prefix_softmax_forward(scores, values, m, u, w, FusedScan::numbers(offsets));
    return {scan.y, {scan.m, scan.u, scan.w}};
  }
  const auto cuts = offsets.defined() ? std::make_optional(offsets) : std::nullopt;
  const auto out = FusedScan::apply(scores, values, m, u, w, cuts, chunk);
  return {out[0], {out[1], out[2], out[3]}};
}

}  // namespace

SoftmaxPartial softmax_total(const Tensor& s, const Tensor& v) {
  const Tensor scores = widened(s), m = scores.detach().amax(-1);
  const Tensor e = (scores - finite(m).unsqueeze(-1)).exp();
  return {m, e.sum(-1), torch::matmul(e.unsqueeze(-2), widened(v)).squeeze(-2)};
}

std::pair<Tensor, SoftmaxPartial> prefix_softmax_scan(const Tensor& s, const Tensor& v,
                                                      const std::optional<Tensor>& mask,
                                                      const std::optional<SoftmaxPartial>& initial,
                                                      const std::optional<Tensor>& cu_seqlens, int64_t chunk) {
  const Tensor offsets = check_shapes(s, v, initial, chunk, cu_seqlens);
  Tensor scores = widened(s), values = v;
  if (mask) {
    const Tensor hidden = mask->logical_not();
    scores = scores.masked_fill(hidden, -kInfinity);
    values = values.masked_fill(hidden.unsqueeze(-1), 0);  // whatever stands there: 0 * NaN would be NaN
  }
  check_scores(scores);
  const int64_t sequences = cu_seqlens ? offsets.size(0) - 1 : s.size(0);
  const SoftmaxPartial start = initial ? with_constant_maximum(*initial) : nothing(widened(v), sequences);
  return kernel_takes(scores, values, start) ? fused(scores, values, start, chunk, offsets)
                                             : reference(scores, values, start, chunk, offsets);
}

TORCH_LIBRARY_FRAGMENT(seqloom, m) {
  define(m,
         "prefix_softmax_scan(Tensor s, Tensor v, Tensor? mask=None, Tensor? initial_m=None, Tensor? initial_u=None, "
         "Tensor? initial_w=None, Tensor? cu_seqlens=None, int chunk=32) -> (Tensor, Tensor, Tensor, Tensor)",
         [](const Tensor& s, const Tensor& v, const std::optional<Tensor>& mask, const std::optional<Tensor>& m,
            const std::optional<Tensor>& u, const std::optional<Tensor>& w, const std::optional<Tensor>& cu_seqlens,
            int64_t chunk) {
           if (m.has_value() != u.has_value() || m.has_value() != w.has_value()) {
             misuse("prefix_softmax_scan: give all of initial_m, initial_u and initial_w, or none");
           }
           const auto initial = m ? std::make_optional(SoftmaxPartial{*m, *u, *w}) : std::nullopt;
           auto [y, state] = prefix_softmax_scan(s, v, mask, initial, cu_seqlens, chunk);
           return std::make_tuple(y, state.m, state.u, state.w);
         });
}

}  // namespace seqloom::ops
