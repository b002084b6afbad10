#pragma once

#include <cstdint>
#include <functional>
#include <optional>

#include "base/torch.h"
#include "mixers/layout.h"

namespace seqloom {

/// The real tokens of a batch, brought together: what a mixer works on to which padding must not exist at all, because
/// it counts its tokens (into chunks, segments) or looks back by number (windows). Row b's real tokens fill the columns
/// shift_b .. shift_b + count_b - 1. Without chunks the shifts are 0; with chunks they are such that a column has the
/// same place in a chunk in every row, also when rows have read different numbers of tokens before.
class Columns {
 public:
  /// The real tokens of x [B, T, ...] at the front of their rows.
  Columns(const Layout& layout, const torch::Tensor& x);
  /// `before` [B] int64: real tokens that each row has read already; chunks are `period` tokens long.
  Columns(const Layout& layout, int64_t batch, int64_t tokens, const torch::Tensor& before, int64_t period);

  int64_t size() const { return size_; }
  /// The place of column 0 in its chunk.
  int64_t phase() const { return phase_; }
  /// [B, C] bool; undefined when the columns are the tokens themselves.
  const torch::Tensor& real() const { return real_; }
  /// Where packed rows begin, which are columns as they are; none unless packed.
  const std::optional<torch::Tensor>& cu_seqlens() const { return cu_seqlens_; }
  /// The place of each column in its row, [1, C] int64.
  torch::Tensor place() const;
  /// Real tokens of each row, [B] int64; of packed ones, [S].
  const torch::Tensor& counts() const { return counts_; }

  /// x [B, T, ...] -> [B, C, ...], zeros where nothing is real.
  torch::Tensor gather(const torch::Tensor& x) const;
  /// fresh [B, C, ...] behind the tokens before it, earlier [B, n, ...] -> [B, n + C, ...]: in every row `earlier` ends
  /// where the real ones of `fresh` begin. Zeros elsewhere.
  torch::Tensor behind(const torch::Tensor& earlier, const torch::Tensor& fresh) const;
  /// Of what `behind` returned, the last n tokens that are real, or were earlier: [B, n, ...].
  torch::Tensor last(const torch::Tensor& joined, int64_t n) const;
  /// The last n tokens of `earlier` [B, n, ...] and the real ones of `fresh` [B, C, ...]: what a window of n tokens
  /// holds behind them; packed rows have one each, [S, n, ...].
  torch::Tensor slid(const torch::Tensor& earlier, const torch::Tensor& fresh) const;
  /// A cache [B, n, ...] to whose end the columns were appended, each row moved so that it ends with its last real
  /// token; zeros before.
  torch::Tensor ended(const torch::Tensor& cache) const;
  /// Rows [B, C, ...] with `gap` zeros behind each, where their tokens are now, [C] int64, and the longer rows' layout.
  struct Spread {
    torch::Tensor x, place;
    Layout layout;
  };
  Spread spread(const torch::Tensor& x, int64_t gap) const;
  /// What a causal f(x, layout) gives when it stands `tokens` tokens further on, where zeros follow each row: y_t =
  /// f(x)_{t + tokens}, [B, C, ...].
  torch::Tensor ahead(const torch::Tensor& x, int64_t tokens,
                      const std::function<torch::Tensor(const torch::Tensor&, const Layout&)>& f) const;
  /// y [B, C, ...] -> [B, T, ...]; zeros for padding.
  torch::Tensor scatter(const torch::Tensor& y) const;

 private:
  void arrange(const torch::Tensor& shift);
  torch::Tensor slid_packed(const torch::Tensor& earlier, const torch::Tensor& fresh) const;

  int64_t batch_, tokens_, size_, phase_ = 0;
  std::optional<torch::Tensor> cu_seqlens_;
  torch::Tensor counts_, real_;
  torch::Tensor keep_;    // [B, T] bool
  torch::Tensor shift_;   // [B, 1] int64
  torch::Tensor source_;  // [B, C] the token of a column
  torch::Tensor column_;  // [B, T] the column of a token
};

}  // namespace seqloom
