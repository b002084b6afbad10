#include "mixers/layout.h"

#include <fmt/ostream.h>

#include "base/error.h"

namespace seqloom {
namespace {

torch::Tensor row_lengths(const torch::Tensor& offsets) {
  return offsets.diff();
}

torch::Tensor keep_first(const torch::Tensor& lengths, int64_t tokens) {
  return torch::arange(tokens, lengths.options()).unsqueeze(0) < lengths.unsqueeze(1);
}

}  // namespace

Layout Layout::padded(torch::Tensor lengths) {
  if (lengths.dim() != 1 || lengths.scalar_type() != torch::kInt64) misuse("layout: lengths must be int64 [B]");
  if (lengths.numel() > 0 && lengths.min().item<int64_t>() < 0) misuse("layout: lengths must not be negative");
  Layout layout;
  layout.lengths_ = std::move(lengths);
  return layout;
}

Layout Layout::masked(torch::Tensor keep) {
  if (keep.dim() != 2 || keep.scalar_type() != torch::kBool) misuse("layout: the mask must be bool [B, T]");
  Layout layout;
  layout.keep_ = std::move(keep);
  return layout;
}

Layout Layout::packed(torch::Tensor offsets) {
  if (offsets.dim() != 1 || offsets.scalar_type() != torch::kInt64 || offsets.numel() < 2) {
    misuse("layout: offsets must be int64 [R + 1] with at least one row");
  }
  if (offsets[0].item<int64_t>() != 0 || offsets.diff().min().item<int64_t>() < 0) {
    misuse("layout: offsets must begin at 0 and never decrease");
  }
  Layout layout;
  layout.offsets_ = std::move(offsets);
  return layout;
}

torch::Tensor Layout::keep(int64_t batch, int64_t tokens) const {
  if (lengths_.defined()) {
    if (lengths_.size(0) != batch) misuse("layout: {} lengths for a batch of {}", lengths_.size(0), batch);
    return keep_first(lengths_, tokens);
  }
  if (keep_.defined() && (keep_.size(0) != batch || keep_.size(1) != tokens)) {
    misuse("layout: the mask is {} for x of [{}, {}]", fmt::streamed(keep_.sizes()), batch, tokens);
  }
  return keep_;
}

std::optional<torch::Tensor> Layout::cu_seqlens() const {
  return is_packed() ? std::make_optional(offsets_) : std::nullopt;
}

std::optional<torch::Tensor> Layout::start(const torch::Tensor& state) const {
  return is_packed() ? std::nullopt : std::make_optional(state);
}

int64_t Layout::sequences(int64_t batch) const {
  return is_packed() ? offsets_.size(0) - 1 : batch;
}

void Layout::check_packed(const torch::Tensor& x) const {
  if (x.size(0) == 1 && offsets_[-1].item<int64_t>() == x.size(1)) return;
  misuse("layout: packed rows end at {} but x is {}", offsets_[-1].item<int64_t>(), fmt::streamed(x.sizes()));
}

torch::Tensor Layout::unpack(const torch::Tensor& x) const {
  check_packed(x);
  const auto lengths = row_lengths(offsets_);
  const int64_t rows = lengths.size(0), longest = std::max<int64_t>(1, lengths.max().item<int64_t>());
  // index_put keeps this differentiable and copies real tokens only
  auto padded = torch::zeros({rows, longest, x.size(2)}, x.options());
  return padded.index_put({keep_first(lengths, longest)}, x[0]);
}

torch::Tensor Layout::pack(const torch::Tensor& x) const {
  return x.index({keep_first(row_lengths(offsets_), x.size(1))}).unsqueeze(0);
}

Layout Layout::unpacked() const {
  return padded(row_lengths(offsets_));
}

}  // namespace seqloom
