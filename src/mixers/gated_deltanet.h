#pragma once
#include <optional>

#include "blocks/norm.h"
#include "mixers/delta_mixer.h"

namespace seqloom {

struct GatedDeltaNetOptions {
  int64_t heads = 6, head_dim = 256, conv_size = 4;
  std::optional<int64_t> num_v_heads;
  double expand_v = 2.0, norm_eps = 1e-5, l2_eps = 1e-6;
  bool use_short_conv = true, use_gate = true, allow_neg_eigval = false;

  void describe(Fields& f) {
    f.add("heads", heads, "query and key heads H").at_least(1).also("num_heads");
    f.add("head_dim", head_dim, "key width K of a head").at_least(1);
    f.add("num_v_heads", num_v_heads, "value heads, a multiple of H; none: as many").at_least(1);
    f.add("expand_v", expand_v, "value width V as a multiple of head_dim").greater_than(0);
    f.add("use_short_conv", use_short_conv, "a short causal convolution on q, k and v; false: SiLU alone");
    f.add("conv_size", conv_size, "its kernel").at_least(1);
    f.add("use_gate", use_gate, "gate the output by silu(W x)");
    f.add("allow_neg_eigval", allow_neg_eigval, "writing strength up to 2");
    f.add("l2_eps", l2_eps, "eps of the l2 norm of queries and keys").greater_than(0);
    f.add("norm_eps", norm_eps, "eps of each head's output norm").greater_than(0);
  }
};

/// Gated DeltaNet (Yang et al. 2024, arXiv 2412.06464): the delta rule on a state that decays,
/// log decay g = -exp(A_log) softplus(W_a x + dt_bias), beta = sigmoid(W_b x). Value head h reads q/k head h / (HV /
/// H).
class GatedDeltaNet final : public DeltaMixer {
 public:
  using Options = GatedDeltaNetOptions;
  static constexpr const char* about =
      "S_t = e^g (I - beta k k^T) S_{t-1} + beta k v^T: forgets and replaces (Yang et al. 2024)";
  static constexpr const char* trials[] = {
      "heads = 2\nhead_dim = 8", "heads = 1\nnum_v_heads = 2\nhead_dim = 6\nexpand_v = 1\nallow_neg_eigval = true",
      "heads = 2\nhead_dim = 4\nuse_short_conv = false\nuse_gate = false", "heads = 2\nhead_dim = 4\nconv_size = 2"};

  GatedDeltaNet(int64_t width, const Options& options);
  std::vector<Tensor> without_weight_decay() const override { return {A_log_, dt_bias_}; }

 protected:
  Projected project(const Tensor& x, Memory& memory, const Columns& columns) override;
  Tensor finish(const Tensor& o, const Tensor& x) override;

 private:
  Options options_;
  int64_t value_heads_;
  Linear q_proj_{nullptr}, k_proj_{nullptr}, v_proj_{nullptr}, a_proj_{nullptr}, b_proj_{nullptr}, g_proj_{nullptr},
      o_proj_{nullptr};
  std::shared_ptr<RmsNorm> o_norm_;
  Tensor A_log_, dt_bias_;
};

}  // namespace seqloom
