#pragma once
#include <optional>
#include <string>

#include "blocks/norm.h"
#include "mixers/mixer.h"

namespace seqloom {

struct LinearAttentionOptions {
  int64_t heads = 4;
  double expand_k = 1.0, expand_v = 1.0;
  std::string feature_map = "elu1", output_norm = "identity";
  double scale = 1.0, eps = 1e-6, norm_eps = 1e-5;
  bool normalize = true, causal = true, bias = false;

  void describe(Fields& f) {
    f.add("heads", heads, "number of heads H; divides the key and the value width").at_least(1).also("num_heads");
    f.add("expand_k", expand_k, "key width as a part of the model width").greater_than(0);
    f.add("expand_v", expand_v, "value width as a part of the model width").greater_than(0);
    f.add("feature_map", feature_map, "phi, applied to queries and keys").one_of({"elu1", "relu", "identity"});
    f.add("normalize", normalize, "divide by phi(q) . sum phi(k)");
    f.add("scale", scale, "factor on the queries").greater_than(0);
    f.add("eps", eps, "added to the normaliser").at_least(0);
    f.add("output_norm", output_norm, "norm of each head's output").one_of({"identity", "rmsnorm"});
    f.add("norm_eps", norm_eps, "eps of that norm").greater_than(0);
    f.add("causal", causal, "false: every token sees the whole sequence");
    f.add("bias", bias, "biases in the projections");
  }
};

/// Linear attention (Katharopoulos et al. 2020, arXiv 2006.16236, eq. 9-20):
///   S_t = S_{t-1} + phi(k_t) v_t^T,  z_t = z_{t-1} + phi(k_t),  o_t = S_t^T phi(q_t) / (z_t . phi(q_t) + eps)
/// Memory: S [B, H, K, V], z [B, H, K]. Its element is the memory itself; combining is adding.
class LinearAttention final : public ScannableMixer {
 public:
  using Options = LinearAttentionOptions;
  static constexpr const char* about =
      "S_t = S_{t-1} + phi(k_t) v_t^T, read by phi(q_t): attention without softmax (Katharopoulos et al. 2020)";
  static constexpr const char* trials[] = {
      "heads = 2", "heads = 2\nfeature_map = 'identity'\nnormalize = false\nscale = 0.5\noutput_norm = 'rmsnorm'",
      "heads = 4\nfeature_map = 'relu'\nexpand_k = 2\neps = 0.1", "heads = 2\ncausal = false"};

  LinearAttention(int64_t width, const Options& options);

  bool causal() const override { return options_.causal; }
  Memory empty_memory(int64_t batch) const override;
  std::optional<MatrixForm> matrix(const Tensor& x) override;

 protected:
  Tensor mix(const Tensor& x, Pass& pass) override;
  bool takes_packed() const override { return true; }
  Tensor read(const Tensor& x, Memory& memory, Pass& pass) override;
  Memory identity_element(int64_t batch) const override { return empty_memory(batch); }
  Memory element(const Tensor& x, Memory& memory, Pass& pass) override;
  Memory combine_elements(const Memory& left, const Memory& right) const override;
  void apply_element(const Memory& element, Memory& memory) override;

 private:
  struct Projected {
    Tensor q, k, v;  // phi applied; [B, T, H, K], [B, T, H, K], [B, T, H, V]
  };
  Projected project(const Tensor& x, const Layout& layout);
  Tensor feature_map(const Tensor& x) const;
  Tensor finish(const Tensor& o);  // [B, T, H, V] -> [B, T, D]

  Options options_;
  int64_t key_width_, value_width_;  // K, V of one head
  Linear q_proj_{nullptr}, k_proj_{nullptr}, v_proj_{nullptr}, o_proj_{nullptr};
  std::shared_ptr<RmsNorm> norm_;
};

}  // namespace seqloom
