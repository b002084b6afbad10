#pragma once
#include <torch/torch.h>

#include <cstdint>

namespace seqloom::ops {

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
