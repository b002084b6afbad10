#include "ops/affine_scan.h"

#include <fmt/ostream.h>
#include <torch/library.h>

#include "base/error.h"
#include "ops/precision.h"

namespace seqloom::ops {
namespace {

using torch::Tensor;

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

}  // namespace

std::tuple<Tensor, Tensor> affine_scan(const Tensor& a, const Tensor& b, const std::optional<Tensor>& initial_state) {
  if (a.dim() < 2 || a.sizes() != b.sizes() || a.size(1) < 1) {
    misuse("affine_scan: a {}, b {}: expected the same [B, T, ...] with T >= 1", fmt::streamed(a.sizes()),
           fmt::streamed(b.sizes()));
  }
  Tensor first = widened(b), decay = widened(a);
  if (initial_state) {
    if (initial_state->sizes() != b.select(1, 0).sizes()) {
      misuse("affine_scan: the initial state is {}, expected {}", fmt::streamed(initial_state->sizes()),
             fmt::streamed(b.select(1, 0).sizes()));
    }
    // the state before the first token is one more contribution of the first token
    const Tensor carried = (decay.select(1, 0) * widened(*initial_state)).unsqueeze(1) + first.narrow(1, 0, 1);
    first = torch::cat({carried, first.narrow(1, 1, b.size(1) - 1)}, 1);
  }
  const Tensor h = scan(decay, first);
  return {h.to(b.scalar_type()), h.select(1, h.size(1) - 1)};
}

TORCH_LIBRARY_FRAGMENT(seqloom, m) {
  m.def("affine_scan(Tensor a, Tensor b, Tensor? initial_state=None) -> (Tensor, Tensor)", &affine_scan);
}

}  // namespace seqloom::ops
