#include "ops/affine_scan.h"

#include <fmt/ostream.h>

#include "base/error.h"
#include "ops/cpu/affine_scan.h"
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

/// Inclusive scan from zero: neighbours are combined into pairs, the pairs scanned, the rest filled in. O(T) work.
Tensor scan(const Tensor& a, const Tensor& b) {
  const int64_t tokens = b.size(1);
  if (tokens == 1) return b;
  const auto every_other = [](const Tensor& x, int64_t first) { return x.slice(1, first, x.size(1), 2); };
  const Tensor a_even = every_other(a, 0), b_even = every_other(b, 0);
  const Tensor a_odd = every_other(a, 1), b_odd = every_other(b, 1);
  const int64_t pairs = b_odd.size(1);
  const Tensor at_odd = scan(a_odd * a_even.narrow(1, 0, pairs), a_odd * b_even.narrow(1, 0, pairs) + b_odd);
  // h at even places 2, 4, ... follows from the odd place before
  const int64_t later = b_even.size(1) - 1;
  const Tensor rest = a_even.narrow(1, 1, later) * at_odd.narrow(1, 0, later) + b_even.narrow(1, 1, later);
  const Tensor at_even = torch::cat({b_even.narrow(1, 0, 1), rest}, 1);
  const Tensor woven = torch::stack({at_even.narrow(1, 0, pairs), at_odd}, 2).flatten(1, 2);
  return tokens % 2 == 0 ? woven : torch::cat({woven, at_even.narrow(1, pairs, 1)}, 1);
}

/// h and the last state, of a state [B, ...] in at least float32.
std::pair<Tensor, Tensor> dense_reference(const Tensor& a, const Tensor& b, const Tensor& state) {
  if (b.size(1) == 0) return {b, state};
  const Tensor decay = widened(a), added = widened(b);
  // the state before the first token is one more contribution of the first token
  const Tensor carried = (decay.select(1, 0) * state).unsqueeze(1) + added.narrow(1, 0, 1);
  const Tensor h = scan(decay, torch::cat({carried, added.narrow(1, 1, b.size(1) - 1)}, 1));
  return {h.to(b.scalar_type()), h.select(1, h.size(1) - 1)};
}

/// Packed sequences one by one; offsets are undefined without.
std::pair<Tensor, Tensor> reference(const Tensor& a, const Tensor& b, const Tensor& state, const Tensor& offsets) {
  if (!offsets.defined()) return dense_reference(a, b, state);
  const auto as = split_sequences(a, offsets, 1), bs = split_sequences(b, offsets, 1), before = state.split(1, 0);
  std::vector<Tensor> all, last;
  for (size_t s = 0; s < before.size(); ++s) {
    auto [h, end] = dense_reference(as[s], bs[s], before[s]);
    all.push_back(h);
    last.push_back(end);
  }
  return {torch::cat(all, 1), torch::cat(last, 0)};
}

/// a, b [R, C], the rows of all sequences, and state [S, C] as the kernel takes them.
class FusedScan : public torch::autograd::Function<FusedScan> {
 public:
  static variable_list forward(AutogradContext* context, const Tensor& a, const Tensor& b, const Tensor& state,
                               const Tensor& offsets) {
    const auto [h, last] = cpu::affine_scan_forward(a, b, state, to_vector(offsets));
    context->save_for_backward({a, b, state, h, offsets});
    return {h, last};
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto s = context->get_saved_variables();
    if (torch::GradMode::is_enabled()) {
      const auto [h, last] = reference(s[0].unsqueeze(0), s[1].unsqueeze(0), s[2], s[4]);
      variable_list all = reference_gradients({h.squeeze(0), last}, {s[0], s[1], s[2]}, gradients);
      all.emplace_back();
      return all;
    }
    const auto [da, db, dstate] = cpu::affine_scan_backward(s[0], s[3], s[2], gradients[0].contiguous(),
                                                            gradients[1].contiguous(), to_vector(s[4]));
    return {da, db, dstate, Tensor()};
  }
};

/// Float32 and complex64, or bfloat16 with a state in float32.
bool kernel_takes(const Tensor& a, const Tensor& b, const Tensor& state) {
  const auto type = b.scalar_type();
  const bool known = type == torch::kFloat32 || type == torch::kComplexFloat || type == torch::kBFloat16;
  return fused_enabled() && b.is_cpu() && known && a.scalar_type() == type && b.numel() > 0 &&
         state.scalar_type() == (type == torch::kBFloat16 ? torch::kFloat32 : type);
}

std::pair<Tensor, Tensor> fused(const Tensor& a, const Tensor& b, const Tensor& state, const Tensor& offsets) {
  const auto rows = [](const Tensor& t, int64_t count) {  // complex tensors may be lazily conjugated
    return t.resolve_conj().contiguous().view({count, -1});
  };
  const int64_t tokens = b.size(0) * b.size(1);
  const Tensor flat_a = rows(a, tokens), flat_b = rows(b, tokens), first = rows(state, state.size(0));
  if (!wants_gradient({a, b, state})) {
    const auto [h, last] = cpu::affine_scan_forward(flat_a, flat_b, first, to_vector(offsets));
    return {h.view(b.sizes()), last.view(state.sizes())};
  }
  const auto out = FusedScan::apply(flat_a, flat_b, first, offsets);
  return {out[0].view(b.sizes()), out[1].view(state.sizes())};
}

}  // namespace

std::tuple<Tensor, Tensor> affine_scan(const Tensor& a, const Tensor& b, const std::optional<Tensor>& initial_state,
                                       const std::optional<Tensor>& cu_seqlens) {
  if (a.dim() < 2 || a.sizes() != b.sizes() || a.size(1) < 1) {
    misuse("affine_scan: a {}, b {}: expected the same [B, T, ...] with T >= 1", fmt::streamed(a.sizes()),
           fmt::streamed(b.sizes()));
  }
  if (cu_seqlens && a.size(0) != 1) {
    misuse("affine_scan: a is {}, expected packed sequences [1, T, ...] beside cu_seqlens", fmt::streamed(a.sizes()));
  }
  const Tensor offsets = cu_seqlens ? checked_offsets(*cu_seqlens, a.size(1), "affine_scan: cu_seqlens") : Tensor();
  auto shape = b.select(1, 0).sizes().vec();
  if (cu_seqlens) shape[0] = offsets.size(0) - 1;
  if (initial_state && initial_state->sizes() != torch::IntArrayRef(shape)) {
    misuse("affine_scan: the initial state is {}, expected {}", fmt::streamed(initial_state->sizes()),
           fmt::streamed(torch::IntArrayRef(shape)));
  }
  const Tensor state = initial_state ? widened(*initial_state) : torch::zeros(shape, widened(b).options());
  if (!kernel_takes(a, b, state)) return reference(a, b, state, offsets);
  return fused(a, b, state, cu_seqlens ? offsets : dense_offsets(b.size(0), b.size(1)));
}

TORCH_LIBRARY_FRAGMENT(seqloom, m) {
  define(m, "affine_scan(Tensor a, Tensor b, Tensor? initial_state=None, Tensor? cu_seqlens=None) -> (Tensor, Tensor)",
         &affine_scan);
}

}  // namespace seqloom::ops
