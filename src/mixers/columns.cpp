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

/// Which of B rows of T tokens are real; undefined where all of them are.
Tensor kept(const Layout& layout, int64_t batch, int64_t tokens) {
  const Tensor keep = layout.keep(batch, tokens);
  return keep.defined() && !keep.all().item<bool>() ? keep : Tensor();
}

}  // namespace

Columns::Columns(const Layout& layout, const Tensor& x)
    : batch_(x.size(0)),
      tokens_(x.size(1)),
      size_(tokens_),
      cu_seqlens_(layout.cu_seqlens()),
      keep_(kept(layout, batch_, tokens_)) {
  const auto indices = torch::TensorOptions(torch::kInt64).device(x.device());
  counts_ = cu_seqlens_ ? cu_seqlens_->diff().to(x.device()) : torch::full({batch_}, tokens_, indices);
  if (keep_.defined()) arrange(torch::zeros({batch_, 1}, indices));
}

Columns::Columns(const Layout& layout, int64_t batch, int64_t tokens, const Tensor& before, int64_t period)
    : batch_(batch),
      tokens_(tokens),
      size_(tokens),
      counts_(torch::full_like(before, tokens)),
      keep_(kept(layout, batch, tokens)) {
  const Tensor phases = before.remainder(period);
  phase_ = phases.min().item<int64_t>();
  if (!keep_.defined() && phases.max().item<int64_t>() == phase_) return;
  if (!keep_.defined()) keep_ = torch::ones({batch, tokens}, before.options().dtype(torch::kBool));
  arrange((phases - phase_).unsqueeze(1));
}

void Columns::arrange(const Tensor& shift) {
  shift_ = shift;
  const Tensor count = keep_.sum(1, /*keepdim=*/true);
  counts_ = count.squeeze(1);
  size_ = std::max<int64_t>(1, (shift_ + count).max().item<int64_t>());
  const Tensor order = keep_.to(torch::kInt8).argsort(/*stable=*/true, 1, /*descending=*/true);  // real tokens first
  const Tensor place = torch::arange(size_, shift_.options()) - shift_;  // of a column among the row's real tokens
  real_ = place.ge(0).logical_and(place.lt(count));
  source_ = order.gather(1, place.clamp(0, tokens_ - 1));
  column_ = (keep_.cumsum(1) - 1 + shift_).clamp(0, size_ - 1);
}

Tensor Columns::place() const {
  const Tensor places = torch::arange(size_, counts_.options());
  if (!cu_seqlens_) return places.unsqueeze(0);
  const Tensor first = cu_seqlens_->narrow(0, 0, counts_.size(0)).to(counts_.device());
  return (places - first.repeat_interleave(counts_)).unsqueeze(0);
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
  return only(gathered(joined, index), place.ge(shift_).logical_and(place.lt(shift_ + n + counts_.unsqueeze(1))));
}

Tensor Columns::last(const Tensor& joined, int64_t n) const {
  if (!real_.defined()) return joined.narrow(1, joined.size(1) - n, n).clone();  // not a view that keeps the rest
  return gathered(joined, shift_ + counts_.unsqueeze(1) + torch::arange(n, shift_.options()));
}

Tensor Columns::slid_packed(const Tensor& earlier, const Tensor& fresh) const {
  const int64_t rows = earlier.size(0), n = earlier.size(1);
  const Tensor end = cu_seqlens_->narrow(0, 1, rows).to(fresh.device()).unsqueeze(1), count = counts_.unsqueeze(1);
  const Tensor place = torch::arange(n, count.options());
  const Tensor from_fresh = fresh[0].index_select(0, (end - n + place).clamp_min(0).flatten()).unflatten(0, {rows, n});
  const Tensor from_earlier = gathered(earlier, (place + count).clamp_max(n - 1));
  Tensor inside = place >= n - count;
  for (int64_t d = 2; d < fresh.dim(); ++d) inside = inside.unsqueeze(-1);
  return torch::where(inside, from_fresh.to(earlier.scalar_type()), from_earlier);
}

Tensor Columns::slid(const Tensor& earlier, const Tensor& fresh) const {
  const int64_t n = earlier.size(1);
  if (n == 0) return earlier;
  if (cu_seqlens_) return slid_packed(earlier, fresh);
  if (real_.defined()) return last(behind(earlier, fresh), n).to(earlier.scalar_type());
  const int64_t taken = std::min(n, size_);
  return torch::cat(
      {earlier.narrow(1, taken, n - taken), fresh.narrow(1, size_ - taken, taken).to(earlier.scalar_type())}, 1);
}

Tensor Columns::ended(const Tensor& cache) const {
  if (!real_.defined()) return cache;
  const Tensor unreal = size_ - shift_ - counts_.unsqueeze(1);  // columns behind a row's last real one, [B, 1]
  const Tensor place = torch::arange(cache.size(1), shift_.options()) - unreal;
  return only(gathered(cache, place.clamp_min(0)), place.ge(0));
}

Columns::Spread Columns::spread(const Tensor& x, int64_t gap) const {
  std::vector<int64_t> behind(2 * x.dim() - 2, 0);
  behind.back() = gap;
  if (!cu_seqlens_) return {torch::constant_pad_nd(x, behind), torch::arange(size_, counts_.options()), Layout()};
  const int64_t rows = cu_seqlens_->size(0) - 1;
  const Tensor offsets = *cu_seqlens_ + gap * torch::arange(rows + 1);
  const Tensor place = torch::arange(size_) + (gap * torch::arange(rows)).repeat_interleave(cu_seqlens_->diff());
  auto shape = x.sizes().vec();
  shape[1] = offsets[-1].item<int64_t>();
  const Tensor nothing = torch::zeros(shape, x.options().requires_grad(false));
  return {nothing.index_copy(1, place.to(x.device()), x), place.to(x.device()), Layout::packed(offsets)};
}

Tensor Columns::ahead(const Tensor& x, int64_t tokens,
                      const std::function<Tensor(const Tensor&, const Layout&)>& f) const {
  const Spread rows = spread(x, tokens);
  const Tensor y = f(rows.x, rows.layout);
  return cu_seqlens_ ? y.index_select(1, rows.place + tokens) : y.narrow(1, tokens, size_);
}

Tensor Columns::scatter(const Tensor& y) const {
  return real_.defined() ? only(gathered(y, column_), keep_) : y;
}

}  // namespace seqloom
