#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/torch.h"

namespace seqloom {

/// Rotary positions (Su et al. 2021, arXiv 2104.09864).
struct RopeOptions {
  double base = 10000;
  std::string layout = "half";  // "half": pairs (m, m + d/2), as Llama; "interleaved": (2m, 2m + 1), as GPT-J
  int64_t rotary_dim = 0;       // channels that are rotated, 0: all; the rest pass through
  // scaling: "none"; "linear": position / factor; "llama3": by wavelength
  std::string scaling = "none";
  double factor = 1;
  double low_freq_factor = 1, high_freq_factor = 4, original_max_position = 8192;  // llama3
};

/// Rotates pairs of the last dimension of x [B, H, T, d] by angles [..., T, d_rot/2] that broadcast over B and H.
torch::Tensor rotate(const torch::Tensor& x, const torch::Tensor& angles, const std::string& layout);

/// Radians a position, [d_rot/2] float64. Throws UsageError for an odd or too large rotary_dim or a wrong scaling.
torch::Tensor rope_frequencies(int64_t head_width, const RopeOptions& options);

/// Angles [..., d_rot/2] of positions [...] (integer or real), float64: far positions keep their phase.
torch::Tensor rope_angles(const torch::Tensor& positions, const torch::Tensor& frequencies);

/// x [B, H, T, d] rotated by its positions, [T] or [B, T].
torch::Tensor rope(const torch::Tensor& x, const torch::Tensor& positions, const RopeOptions& options);

/// ALiBi's slope of each head (Press et al. 2021, arXiv 2108.12409), [H] float32.
torch::Tensor alibi_slopes(int64_t heads);

/// ALiBi's bias -slope |relative|, of relative positions key - query [rows, keys]; [H, rows, keys].
torch::Tensor alibi_bias(const torch::Tensor& slopes, const torch::Tensor& relative);

/// T5's bucket (Raffel et al. 2019, arXiv 1910.10683) of relative positions key - query, int64. Throws UsageError when
/// the buckets cannot be cut so (odd when bidirectional, max_distance within the exact ones).
torch::Tensor t5_bucket(const torch::Tensor& relative, bool bidirectional, int64_t buckets, int64_t max_distance);

/// Sinusoidal vectors (Vaswani et al. 2017, sec. 3.5) of positions [...] -> [..., width]: "interleaved"
/// [sin, cos, sin, cos, ...] or "half" [sin ... | cos ...].
torch::Tensor sinusoidal_at(const torch::Tensor& positions, int64_t width, const std::string& layout = "interleaved");

/// Rows of a learned table [max, D] for positions [...] int64 -> [..., D]. Throws UsageError for one beyond the table.
torch::Tensor learned_at(const torch::Tensor& table, const torch::Tensor& positions);

/// CARoPE's phase increments (Veisi et al. 2025, arXiv 2507.23083): f^i for i = first .. first + d/2 - 1 with
/// f = 1 / (softplus(u W^T + b) + 1). u [B, T, D], weight [H, D], bias [H] or none -> [B, H, T, d/2], float64. A
/// token's phase is the sum of the increments up to its own.
torch::Tensor carope_increments(const torch::Tensor& u, const torch::Tensor& weight,
                                const std::optional<torch::Tensor>& bias, int64_t head_width, int64_t first_exponent);

}  // namespace seqloom
