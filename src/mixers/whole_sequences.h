#pragma once

#include <vector>

#include "base/torch.h"
#include "mixers/layout.h"
#include "ops/packing.h"

namespace seqloom {

/// What is summed over all tokens of a sequence and read by each of them: linear attention without a direction. Rows
/// are dense, or packed in one.

/// f of each packed sequence's part of the tensors [1, N, ...], side by side along dimension `dim` of the results.
template <typename F>
torch::Tensor by_sequence(const Layout& layout, const std::vector<torch::Tensor>& tensors, int64_t dim, F f) {
  std::vector<std::vector<torch::Tensor>> parts;
  for (const auto& t : tensors) parts.push_back(ops::split_sequences(t, layout.offsets(), 1));
  std::vector<torch::Tensor> results;
  for (size_t s = 0; s < parts[0].size(); ++s) {
    std::vector<torch::Tensor> own;
    for (const auto& all : parts) own.push_back(all[s]);
    results.push_back(f(own));
  }
  return torch::cat(results, dim);
}

/// sum_t x_t: [B, T, ...] -> [S, ...].
inline torch::Tensor sequence_sums(const torch::Tensor& x, const Layout& layout) {
  const auto sum = [](const std::vector<torch::Tensor>& own) { return own[0].sum(1); };
  return layout.is_packed() ? by_sequence(layout, {x}, 0, sum) : sum({x});
}

/// sum_t k_t v_t^T: k [B, T, H, K], v [B, T, H, V] -> [S, H, K, V].
inline torch::Tensor sequence_products(const torch::Tensor& k, const torch::Tensor& v, const Layout& layout) {
  const auto product = [](const std::vector<torch::Tensor>& own) {
    return torch::matmul(own[0].permute({0, 2, 3, 1}), own[1].transpose(1, 2));
  };
  return layout.is_packed() ? by_sequence(layout, {k, v}, 0, product) : product({k, v});
}

/// What each token's query reads of its sequence's state: q [B, T, H, K], S [S, H, K, V] -> [B, T, H, V].
inline torch::Tensor read_by_sequence(const torch::Tensor& q, const torch::Tensor& S, const Layout& layout) {
  const auto read = [](const torch::Tensor& own, const torch::Tensor& state) {
    return torch::matmul(own.transpose(1, 2), state).transpose(1, 2);
  };
  if (!layout.is_packed()) return read(q, S);
  int64_t next = 0;
  return by_sequence(layout, {q}, 1,
                     [&](const std::vector<torch::Tensor>& own) { return read(own[0], S.narrow(0, next++, 1)); });
}

/// x [S, ...] of each token's sequence, where x broadcasts over tokens: [S, 1, ...], packed [1, N, ...].
inline torch::Tensor at_tokens(const torch::Tensor& x, const Layout& layout) {
  if (!layout.is_packed()) return x.unsqueeze(1);
  return x.repeat_interleave(layout.offsets().diff().to(x.device()), 0).unsqueeze(0);
}

}  // namespace seqloom
