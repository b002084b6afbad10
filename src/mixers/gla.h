#pragma once
#include <torch/nn/modules/container/sequential.h>

#include <optional>
#include <string>

#include "blocks/norm.h"
#include "mixers/mixer.h"
#include "mixers/short_conv.h"

namespace seqloom {

struct GlaOptions {
  int64_t heads = 4;
  std::optional<int64_t> kv_heads;
  double expand_k = 0.5, expand_v = 1.0, gate_logit_normalizer = 16, norm_eps = 1e-5;
  std::optional<double> clamp_min;
  int64_t gate_low_rank_dim = 16, conv_size = 4;
  bool use_short_conv = false, use_output_gate = true;
  std::string gate_fn = "swish";

  void describe(Fields& f) {
    f.add("heads", heads, "number of heads H; divides the key and the value width").at_least(1).also("num_heads");
    f.add("kv_heads", kv_heads, "key and value heads, which divide H; none: as many").at_least(1).also("num_kv_heads");
    f.add("expand_k", expand_k, "key width as a part of the model width").greater_than(0).also("key_expansion");
    f.add("expand_v", expand_v, "value width as a part of the model width").greater_than(0).also("value_expansion");
    f.add("gate_logit_normalizer", gate_logit_normalizer,
          "log decay = logsigmoid(.) / this; larger forgets more slowly")
        .greater_than(0)
        .also("gate_normalizer");
    f.add("gate_low_rank_dim", gate_low_rank_dim, "rank of the gate's projection").at_least(1);
    f.add("clamp_min", clamp_min, "log decays are at least this; none: no limit").at_most(0);
    f.add("use_short_conv", use_short_conv, "a short causal convolution with SiLU on q, k and v");
    f.add("conv_size", conv_size, "its kernel").at_least(1);
    f.add("use_output_gate", use_output_gate, "gate the output by act(W x)");
    f.add("gate_fn", gate_fn, "act of the output gate").one_of({"swish", "silu", "sigmoid", "identity"});
    f.add("norm_eps", norm_eps, "eps of each head's output norm").greater_than(0);
  }
};

/// Gated linear attention (Yang et al. 2023, arXiv 2312.06635, eq. 3):
///   S_t = diag(a_t) S_{t-1} + k_t v_t^T,  o_t = S_t^T q_t / sqrt(K),  log a = logsigmoid(W2 W1 x + b) / normalizer
/// then an RMSNorm of each head and an output gate. Memory: S [B, H, K, V], with short convolutions their windows
/// q_conv, k_conv, v_conv [B, C, W-1]. Element: log_decay [B, H, K] (sum of log a) and S.
class Gla final : public ScannableMixer {
 public:
  using Options = GlaOptions;
  static constexpr const char* about =
      "S_t = diag(a_t) S_{t-1} + k_t v_t^T with a gate a for each key channel (Yang et al. 2023)";
  static constexpr const char* trials[] = {
      "heads = 2", "heads = 2\nuse_short_conv = true\nexpand_k = 1.0",
      "heads = 4\nkv_heads = 2\nexpand_k = 1.0\nclamp_min = -0.05\nuse_output_gate = false",
      "heads = 2\ngate_logit_normalizer = 0.2\nuse_short_conv = true\nconv_size = 2\ngate_fn = 'sigmoid'"};

  Gla(int64_t width, const Options& options);

  Memory empty_memory(int64_t batch) const override;
  std::optional<MatrixForm> matrix(const Tensor& x) override;

 protected:
  bool takes_packed() const override { return true; }
  Tensor read(const Tensor& x, Memory& memory, Pass& pass) override;
  int64_t reach() const override { return options_.use_short_conv ? options_.conv_size - 1 : 0; }
  std::vector<std::string> context() const override;
  Memory identity_element(int64_t batch) const override;
  Memory element(const Tensor& x, Memory& memory, Pass& pass) override;
  Memory combine_elements(const Memory& left, const Memory& right) const override;
  void apply_element(const Memory& element, Memory& memory) override;

 private:
  struct Projected {
    Tensor q, k, v, log_decay;  // [B, T, H, K], [B, T, H, K], [B, T, H, V], [B, T, H, K]
  };
  Projected project(const Tensor& x, Memory& memory, const Layout& layout);
  Tensor finish(const Tensor& o, const Tensor& x);  // [B, T, H, V] -> [B, T, D]
  double scale() const;

  Options options_;
  int64_t kv_heads_, key_width_, value_width_;
  Linear q_proj_{nullptr}, k_proj_{nullptr}, v_proj_{nullptr}, g_proj_{nullptr}, o_proj_{nullptr};
  torch::nn::Sequential gk_proj_{nullptr};
  std::shared_ptr<ShortConv> q_conv1d_, k_conv1d_, v_conv1d_;
  std::shared_ptr<RmsNorm> g_norm_;
};

}  // namespace seqloom
