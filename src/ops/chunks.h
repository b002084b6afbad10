#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "base/torch.h"

namespace seqloom::ops {

/// Refuses an empty dimension of q [B, T, H, K] or v [B, T, H, V], chunk < 1 and log gates > 0. NaN gates pass: they
/// show in the results.
void check_recurrence(const char* op, const torch::Tensor& q, const torch::Tensor& v,
                      const std::optional<torch::Tensor>& log_decay, int64_t chunk);

/// Checked offsets of packed sequences in q [1, T, H, K]; undefined without `cu_seqlens`.
torch::Tensor packed_offsets(const char* op, const torch::Tensor& q, const std::optional<torch::Tensor>& cu_seqlens);

/// Sequences of q [B, T, H, K]: its rows, or as many as the offsets tell apart.
int64_t count_sequences(const torch::Tensor& q, const torch::Tensor& offsets);

/// x as the kernels read it: float32 or bfloat16, half widened, and as it lies where its rows are contiguous, so that
/// heads which share keys need no copies of them.
torch::Tensor with_rows(const torch::Tensor& x);
/// The same for one number a token and head, which may lie anyhow.
torch::Tensor with_numbers(const torch::Tensor& x);

/// Log gates summed along one dimension.
struct CumulativeGates {
  torch::Tensor sums;  ///< inclusive; float64 when not mild
  bool mild;           ///< every total is above -60: e^{+-30} about the middle keeps full float32 precision
};

/// A sum that passed a gate of -1000 has lost, in float32, what a later gate of -0.01 adds; so strong gates are summed
/// in float64, and their differences must be formed in it. Each is first clamped to where its e^g is 0 in its own type:
/// this bounds the sums and makes -inf, a complete reset, a number.
CumulativeGates cumulative_gates(const torch::Tensor& log_decay, int64_t dim);

/// x [B, T, H, ...] -> [B, H, T/C, C, ...], zeros appended to fill the last chunk. Zero keys, gates and values are the
/// identity of the linear recurrences, so the filling changes no state.
torch::Tensor to_chunks(const torch::Tensor& x, int64_t chunk);

/// o [B, H, T/C, C, V] -> [B, T, H, V] with the first `tokens` tokens.
torch::Tensor from_chunks(const torch::Tensor& o, int64_t tokens);

/// S_{c+1} = decay_c S_c + added_c over dimension 2: decay, added [B, H, T/C, K, V] (decay may broadcast).
/// Returns the states before each chunk [B, H, T/C, K, V] and the last one [B, H, K, V].
std::pair<torch::Tensor, torch::Tensor> scan_chunk_states(const torch::Tensor& decay, const torch::Tensor& added,
                                                          const torch::Tensor& initial);

}  // namespace seqloom::ops
