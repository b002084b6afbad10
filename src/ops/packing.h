#pragma once

#include <cstdint>
#include <vector>

#include "base/torch.h"

namespace seqloom::ops {

/// The real tokens of a padded batch without the padding (Zhai et al. 2022, arXiv 2210.03052).
struct Packed {
  torch::Tensor data;        // [N, ...], N real tokens, row after row
  torch::Tensor cu_seqlens;  // [B + 1] int64, row b is cu_seqlens[b] .. cu_seqlens[b + 1]
  torch::Tensor indices;     // [N] int64, the place b T + t of each
  int64_t longest = 0;       // tokens of the longest row
};

/// x [B, T, ...]; mask [B, T], 1 or true for real tokens, on x's device. Rows may be empty. Unless holes are allowed,
/// the real tokens of a row must come first. Throws UsageError for wrong shapes, other values and holes.
Packed pack_padding(const torch::Tensor& x, const torch::Tensor& mask, bool allow_holes = true);

/// data [N, ...] -> [batch, tokens, ...], zeros in the padding.
torch::Tensor unpack_padding(const torch::Tensor& data, const torch::Tensor& indices, int64_t batch, int64_t tokens);

/// Where packed sequences begin, as int64 [S + 1] on the CPU, from int64 or int32. Throws UsageError, beginning with
/// `name`, unless they rise from 0 to `rows`; equal neighbours are an empty sequence.
torch::Tensor checked_offsets(const torch::Tensor& offsets, int64_t rows, const char* name);

/// Where the rows of a batch [B, T, ...] begin among all B T: int64 [B + 1] on the CPU.
torch::Tensor dense_offsets(int64_t batch, int64_t tokens);

/// One tensor's part of each packed sequence, by checked offsets.
std::vector<torch::Tensor> split_sequences(const torch::Tensor& t, const torch::Tensor& offsets, int64_t dim);

/// Checked offsets as numbers.
std::vector<int64_t> to_vector(const torch::Tensor& offsets);

/// [B, E, T] -> rows [B T, E], as they lie where a GEMM left them (its channels together, of one row after the other).
torch::Tensor channel_rows(const torch::Tensor& t);

}  // namespace seqloom::ops
