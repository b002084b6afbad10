#include "ops/chunks.h"

#include <algorithm>

#include "base/error.h"
#include "ops/packing.h"
#include "ops/precision.h"

namespace seqloom::ops {

void check_recurrence(const char* op, const torch::Tensor& q, const torch::Tensor& v,
                      const std::optional<torch::Tensor>& log_decay, int64_t chunk) {
  const std::pair<char, int64_t> sizes[] = {
      {'B', q.size(0)}, {'T', q.size(1)}, {'H', q.size(2)}, {'K', q.size(3)}, {'V', v.size(3)}};
  for (const auto& [name, size] : sizes) {
    if (size < 1) {
      misuse("{}: {} = 0: no dimension of q, k [B, T, H, K] and v [B, T, H, V] may be empty", op, name);
    }
  }
  if (chunk < 1) misuse("{}: chunk = {}, expected at least 1 token", op, chunk);
  if (!log_decay) return;
  const auto largest = log_decay->detach().max().item<double>();
  if (largest > 0) misuse("{}: log_decay reaches {}, expected log gates <= 0, under which a state fades", op, largest);
}

torch::Tensor packed_offsets(const char* op, const torch::Tensor& q, const std::optional<torch::Tensor>& cu_seqlens) {
  if (!cu_seqlens) return torch::Tensor();
  if (q.dim() != 4 || q.size(0) != 1) {
    misuse("{}: q is {}, expected packed sequences [1, T, H, K] beside cu_seqlens", op, fmt::streamed(q.sizes()));
  }
  return checked_offsets(*cu_seqlens, q.size(1), fmt::format("{}: cu_seqlens", op).c_str());
}

int64_t count_sequences(const torch::Tensor& q, const torch::Tensor& offsets) {
  return offsets.defined() ? offsets.size(0) - 1 : q.dim() > 0 ? q.size(0) : 0;
}

torch::Tensor with_numbers(const torch::Tensor& x) {
  return x.scalar_type() == torch::kHalf ? x.to(torch::kFloat32) : x;
}

torch::Tensor with_rows(const torch::Tensor& x) {
  const torch::Tensor rows = with_numbers(x);
  return rows.stride(-1) == 1 ? rows : rows.contiguous();
}

CumulativeGates cumulative_gates(const torch::Tensor& log_decay, int64_t dim) {
  constexpr double kMildLimit = -60;
  const torch::Tensor sums = log_decay.cumsum(dim);
  const auto lowest = sums.detach().narrow(dim, sums.size(dim) - 1, 1).min().item<double>();
  if (lowest > kMildLimit) return {sums, true};
  const double zero = log_decay.scalar_type() == torch::kFloat64 ? -800 : -200;
  return {log_decay.clamp_min(zero).cumsum(dim, torch::kFloat64), false};
}

torch::Tensor to_chunks(const torch::Tensor& x, int64_t chunk) {
  const int64_t tokens = x.size(1), chunks = (tokens + chunk - 1) / chunk;
  torch::Tensor filled = x;
  if (chunks * chunk != tokens) {
    auto sizes = x.sizes().vec();
    sizes[1] = chunks * chunk - tokens;
    filled = torch::cat({x, torch::zeros(sizes, x.options())}, 1);
  }
  return filled.unflatten(1, {chunks, chunk}).movedim(3, 1);
}

torch::Tensor from_chunks(const torch::Tensor& o, int64_t tokens) {
  return o.flatten(2, 3).narrow(2, 0, tokens).transpose(1, 2);
}

std::pair<torch::Tensor, torch::Tensor> scan_chunk_states(const torch::Tensor& decay, const torch::Tensor& added,
                                                          const torch::Tensor& initial) {
  // unbind, not select: the backward of a select fills a tensor of the full size for every chunk
  const auto decays = decay.unbind(2), additions = added.unbind(2);
  std::vector<torch::Tensor> before;
  before.reserve(additions.size());
  torch::Tensor state = initial;
  for (size_t c = 0; c < additions.size(); ++c) {
    before.push_back(state);
    state = torch::addcmul(additions[c], decays[c], state);
  }
  return {torch::stack(before, 2), state};
}

}  // namespace seqloom::ops
