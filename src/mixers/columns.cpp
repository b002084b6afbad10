#include "mixers/columns.h"

#include <algorithm>

namespace seqloom {
namespace {

using torch::Tensor;

/// x [B, N, ...] at index [B, C] along dimension 1.
Tensor gathered(const Tensor& x, const Tensor& index) {
  Tensor wide = index;
  auto sizes = x.sizes().vec();
  for (int64_t d = 2; d < x.dim(); ++d) wide = wide.unsqueeze(-1);
  sizes[1] = index.size(1);
  return x.gather(1, wide.expand(sizes));
}

/// x [B, C, ...], zeros where not `real` [B, C].
Tensor only(const Tensor& x, const Tensor& real) {
  Tensor hidden = real.logical_not();
  for (int64_t d = 2; d < x.dim(); ++d) hidden = hidden.unsqueeze(-1);
  return x.masked_fill(hidden, 0);  // not a product: padding may hold anything
}

}  // namespace

Columns::Columns(const Layout& layout, int64_t batch, int64_t tokens, const Tensor& before, int64_t period)
    : batch_(batch), tokens_(tokens), size_(tokens), padding_(torch::zeros_like(before)) {
  keep_ = layout.keep(batch, tokens);
  const Tensor phases = before.remainder(period);
  phase_ = phases.min().item<int64_t>();
  if (keep_.defined() && keep_.all().item<bool>()) keep_ = Tensor();
  if (!keep_.defined() && phases.max().item<int64_t>() == phase_) return;

  if (!keep_.defined()) keep_ = torch::ones({batch, tokens}, before.options().dtype(torch::kBool));
  shift_ = (phases - phase_).unsqueeze(1);
  count_ = keep_.sum(1, /*keepdim=*/true);
  padding_ = tokens - count_.squeeze(1);
  size_ = std::max<int64_t>(1, (shift_ + count_).max().item<int64_t>());
  const Tensor order = keep_.to(torch::kInt8).argsort(/*stable=*/true, 1, /*descending=*/true);  // real tokens first
  const Tensor place = torch::arange(size_, before.options()) - shift_;  // of a column among the row's real tokens
  real_ = place.ge(0).logical_and(place.lt(count_));
  source_ = order.gather(1, place.clamp(0, tokens - 1));
  column_ = (keep_.cumsum(1) - 1 + shift_).clamp(0, size_ - 1);
}

Tensor Columns::gather(const Tensor& x) const {
  return real_.defined() ? only(gathered(x, source_), real_) : x;
}

Tensor Columns::behind(const Tensor& earlier, const Tensor& fresh) const {
  const Tensor joined = torch::cat({earlier.to(fresh.scalar_type()), fresh}, 1);
  if (!real_.defined()) return joined;
  // the earlier tokens move right by the shift, the fresh ones have moved already
  const int64_t n = earlier.size(1);
  const Tensor place = torch::arange(n + size_, shift_.options()).unsqueeze(0).expand({batch_, n + size_});
  const Tensor from_earlier = place.lt(shift_ + n);
  const Tensor index = torch::where(from_earlier, (place - shift_).clamp_min(0), place);
  return only(gathered(joined, index), place.ge(shift_).logical_and(place.lt(shift_ + n + count_)));
}

Tensor Columns::last(const Tensor& joined, int64_t n) const {
  if (!real_.defined()) return joined.narrow(1, joined.size(1) - n, n).clone();  // not a view that keeps the rest
  return gathered(joined, shift_ + count_ + torch::arange(n, shift_.options()));
}

Tensor Columns::scatter(const Tensor& y) const {
  return real_.defined() ? only(gathered(y, column_), keep_) : y;
}

}  // namespace seqloom
