#pragma once
#include <torch/nn/modules/container/sequential.h>

#include <optional>
#include <string>

#include "blocks/positions.h"
#include "mixers/mixer.h"
#include "mixers/short_conv.h"

namespace seqloom {

struct LawcatOptions {
  int64_t heads = 4;
  std::optional<int64_t> kv_heads;
  int64_t conv_size = 4, gate_low_rank_dim = 16;
  std::string feature_map = "hedgehog", gate = "vector";
  double gate_logit_normalizer = 16, eps = 1e-6;
  bool normalize = true, rope = false;
  RopeOptions rope_options;

  void describe(Fields& f) {
    f.add("heads", heads, "number of heads H; divides the width").at_least(1).also("num_heads");
    f.add("kv_heads", kv_heads, "key and value heads, which divide H; none: as many").at_least(1).also("num_kv_heads");
    f.add("conv_size", conv_size, "kernel of the causal convolution on queries and keys").at_least(1);
    f.add("feature_map", feature_map, "phi, applied to queries and keys")
        .one_of({"softmax", "hedgehog", "elu1", "relu"});
    f.add("gate", gate, "a gate for each channel of phi(k), or one for each head").one_of({"vector", "head"});
    f.add("gate_low_rank_dim", gate_low_rank_dim, "rank of the gate's projection").at_least(1);
    f.add("gate_logit_normalizer", gate_logit_normalizer,
          "log decay = logsigmoid(.) / this; larger forgets more slowly")
        .greater_than(0)
        .also("gate_normalizer");
    f.add("normalize", normalize, "divide by phi(q) . z");
    f.add("eps", eps, "added to the normaliser").at_least(0);
    f.add("rope", rope, "turn queries and keys by their positions, after the convolution");
    f.add("rope_base", rope_options.base, "rope: frequencies fall from 1 to about 1 / base").greater_than(0);
  }
};

/// The feature map of Hedgehog (Zhang et al. 2024, arXiv 2402.04347): h = W x, phi = [softmax(h); softmax(-h)].
/// `weight` [H, K, K], first the channel that is read, starts as the identity. [B, T, H, K] -> [B, T, H, 2K].
class HedgehogMap : public torch::nn::Module {
 public:
  HedgehogMap(int64_t heads, int64_t width);
  Tensor forward(const Tensor& x);

 private:
  Tensor weight_;
};

/// LAWCAT (2025, arXiv 2509.18467): linear attention made from a softmax transformer's projections. q and k go through
/// a short causal convolution across tokens, then (rope) are turned, then mapped by phi >= 0; the state is gated and
/// normalised:
///   S_t = diag(a_t) S_{t-1} + phi(k_t) v_t^T,  z_t = a_t z_{t-1} + phi(k_t),
///   o_t = S_t^T phi(q_t) / (phi(q_t) . z_t + eps),  log a = logsigmoid(W2 W1 x + b) / normalizer
/// Memory: S [B, H, F, V], z [B, H, F] for F = width of phi, and the last inputs of the convolutions q_conv [B, W-1,
/// H K], k_conv [B, W-1, Hkv K] in time order. Element: log_decay [B, H, F or 1] (sum of log a), S, z. With rope, phi
/// of a key depends on its absolute position, so that a run is summarised for where it stands. Shows "attn" [B, T, H,
/// V], the heads' outputs that stage one of the distillation compares with the teacher's.
class Lawcat final : public ScannableMixer {
 public:
  using Options = LawcatOptions;
  static constexpr const char* about =
      "gated, normalised linear attention behind short convolutions of q and k, distilled from softmax (LAWCAT 2025)";
  static constexpr const char* trials[] = {
      "heads = 2\nfeature_map = 'softmax'", "heads = 4\nkv_heads = 2\nrope = true\ngate_logit_normalizer = 1",
      "heads = 2\nfeature_map = 'elu1'\ngate = 'head'\nconv_size = 3\ngate_low_rank_dim = 6",
      "heads = 4\nkv_heads = 1\nfeature_map = 'relu'\nnormalize = false\nconv_size = 2\ngate_logit_normalizer = 0.2",
      "heads = 2\ngate = 'head'\nconv_size = 1\neps = 0.1\nrope = true\nrope_base = 100\nnormalize = false"};

  Lawcat(int64_t width, const Options& options);

  Memory empty_memory(int64_t batch) const override;
  std::optional<MatrixForm> matrix(const Tensor& x) override;

 protected:
  bool takes_packed() const override { return true; }
  Tensor read(const Tensor& x, Memory& memory, Pass& pass) override;
  int64_t reach() const override { return options_.conv_size - 1; }
  std::vector<std::string> context() const override { return {"q_conv", "k_conv"}; }
  bool positioned() const override { return options_.rope; }
  Memory identity_element(int64_t batch) const override;
  Memory element(const Tensor& x, Memory& memory, Pass& pass) override;
  Memory combine_elements(const Memory& left, const Memory& right) const override;
  void apply_element(const Memory& element, Memory& memory) override;

 private:
  struct Projected {
    Tensor q, k, v, log_decay;  // phi applied; [B, T, H, F], [B, T, H, F], [B, T, H, V], [B, T, H, F] or [B, T, H]
  };
  Projected project(const Tensor& x, Memory& memory, Pass& pass);
  /// Projected queries or keys through the convolution whose last inputs memory[window] holds, rope and phi.
  Tensor features(const Tensor& projected, ShortConv& conv, Tensor& window, HedgehogMap* map, const Tensor& angles,
                  const Columns& columns);
  Tensor per_query_head(const Tensor& x) const;  // [B, T, Hkv, ...] -> [B, T, H, ...]
  /// Reads p into the memory, returns the heads' outputs.
  Tensor attend(const Projected& p, Memory& memory, const Layout& layout) const;

  Options options_;
  int64_t kv_heads_, head_width_, feature_width_;  // K = V, F
  Tensor frequencies_;                             // rope: [K/2] float64
  Linear q_proj_{nullptr}, k_proj_{nullptr}, v_proj_{nullptr}, o_proj_{nullptr};
  torch::nn::Sequential gk_proj_{nullptr};
  std::shared_ptr<ShortConv> q_conv_, k_conv_;
  std::shared_ptr<HedgehogMap> feature_q_, feature_k_;
};

}  // namespace seqloom
