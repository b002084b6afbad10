#pragma once
#include <optional>
#include <string>

#include "blocks/damped_ema.h"
#include "mixers/mixer.h"
#include "ops/coded_attention.h"

namespace seqloom {

struct LongVqOptions {
  int64_t z_dim = 64, ema_ndim = 8, num_codes = 64, window = 32;
  std::optional<int64_t> v_dim;
  bool causal = true, qk_norm = true, reseed = true;
  double gamma = 0.99, commit_weight = 1e-4, count_min = 0.01;
  std::string key_gradient = "all";

  void describe(Fields& f) {
    f.add("z_dim", z_dim, "width Z of queries and keys").at_least(1);
    f.add("v_dim", v_dim, "width V of the values; none: 2 x the model width").at_least(1);
    f.add("ema_ndim", ema_ndim, "moving averages N of each channel").at_least(1);
    f.add("num_codes", num_codes, "codewords S that keys are replaced by").at_least(1);
    f.add("window", window, "W: keys nearer than this have a learned bias").at_least(1);
    f.add("causal", causal, "false: every token sees the whole sequence");
    f.add("qk_norm", qk_norm, "normalise queries and keys: at first they are so small that one code takes all");
    f.add("gamma", gamma, "part of its statistics that the codebook keeps in each update").at_least(0).less_than(1);
    f.add("commit_weight", commit_weight, "weight of the loss that draws keys to their codewords").at_least(0);
    f.add("count_min", count_min, "a code's count is at least this; one below it is dead").greater_than(0);
    f.add("reseed", reseed, "a dead code starts again at a random key");
    f.add("key_gradient", key_gradient,
          "which queries keys learn from, straight through their codewords. all: S Z V operations a token; near: those "
          "of two blocks, as Transformer-VQ; none: keys learn by the commit loss alone")
        .one_of({"all", "near", "none"});
  }
};

/// LongVQ (Liu et al. 2024, arXiv 2404.11163): the gates of Mega, the attention of Transformer-VQ. With m = ema(x) and
/// [u | z | r | h] = W_mx m + b,
///   q, k = silu(z) * gamma + beta,   v = silu(W_v x),   o_i = sum_j softmax_j(q_i . C[code(k_j)] / sqrt(Z) + bias) v_j
///   y = x + sigmoid(u) * (silu(h + W_h (o * silu(r))) - x)
/// The bias is learned for |i - j| < W, 0 beyond. C, the codebook of S words, follows the keys by moving averages of
/// their sums and counts, between two optimiser steps.
/// Memory: ema [B, D, N]; the last W-1 tokens win_codes [B, n] (-1: padding) and win_v [B, n, V]; of those before them
/// count [B, S] and vsum [B, S, V]. It has no summary: a key depends, through the average, on all tokens before it, and
/// its code is no linear function of that. Straight-through gradients end where a call does: codes carry none.
class LongVq final : public CausalMixer {
 public:
  using Options = LongVqOptions;
  static constexpr const char* about =
      "softmax attention over all tokens in linear time: keys are codewords, far ones are counted (LongVQ, 2024)";
  // Straight-through gradients are not those of the outputs, so that no law of gradients can hold for them; longvq_test
  // compares them with the quadratic form's.
  static constexpr const char* trials[] = {
      "z_dim = 8\nnum_codes = 6\nwindow = 4\nkey_gradient = 'none'",
      "z_dim = 5\nv_dim = 7\nema_ndim = 2\nnum_codes = 9\nwindow = 9\nqk_norm = false\nkey_gradient = 'none'",
      "z_dim = 8\nnum_codes = 3\nwindow = 1\nema_ndim = 1\nkey_gradient = 'none'",
      "z_dim = 8\nnum_codes = 6\nwindow = 50\nkey_gradient = 'none'",
      "z_dim = 8\nnum_codes = 6\nwindow = 4\ncausal = false\nkey_gradient = 'none'"};

  LongVq(int64_t width, const Options& options);

  bool causal() const override { return options_.causal; }
  Memory empty_memory(int64_t batch) const override;
  std::optional<MatrixForm> matrix(const Tensor& x) override;
  std::vector<Tensor> without_weight_decay() const override;

  /// Moves the codebook towards the keys of the training passes since the last call. The first call starts it from
  /// these keys (k-means++).
  void after_step() override;

  static Config from_case(Config config, const std::map<std::string, std::vector<int64_t>>& shapes);

 protected:
  Tensor mix(const Tensor& x, Pass& pass) override;
  Tensor read(const Tensor& x, Memory& memory, Pass& pass) override;

 private:
  struct Projected {
    Tensor u, r, h;  // [B, T, D], [B, T, V], [B, T, D]
    Tensor q, k, v;  // [B, T, Z] scaled, [B, T, Z], [B, T, V]; at least float32
  };
  /// x with the first lengths[b] tokens real, all when undefined; `ema` is the average's state.
  Projected project(const Tensor& x, Tensor& ema, const Tensor& lengths);
  /// Codes of the keys, [B, T] with -1 for padding, and their codewords. Notes statistics and the loss in training.
  ops::CodedTokens quantize(const Projected& p, const Tensor& keep, Pass& pass);
  void note(const Tensor& keys, const Tensor& codes);
  ops::CodedRule rule() const;
  /// Tokens that lie before the window go from it to the far ones.
  void remember(const ops::CodedTokens& tokens, bool ragged, Memory& memory) const;
  Tensor finish(const Tensor& x, const Projected& p, const Tensor& o);
  Tensor codewords() const;  // [S, Z]

  Options options_;
  int64_t value_width_;
  std::shared_ptr<DampedEma> move_;
  Linear mx_proj_{nullptr}, v_proj_{nullptr}, h_proj_{nullptr};
  Tensor gamma_, beta_, rel_bias_;  // [2, Z], [2, Z], [W] or [2W-1]
  Tensor c_sum_, c_count_;          // buffers [S, Z], [S]
  Tensor updates_;                  // buffer, int64: updates of the codebook so far
  Tensor new_sum_, new_count_;      // of the training passes since the last update; undefined: none
  Tensor keys_;                     // of the last such pass, [n, Z]
};

}  // namespace seqloom
