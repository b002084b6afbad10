#pragma once
#include <string>

#include "blocks/norm.h"
#include "mixers/delta_mixer.h"

namespace seqloom {

struct DeltaNetOptions {
  int64_t heads = 4, conv_size = 4;
  double expand_k = 1.0, expand_v = 1.0, norm_eps = 1e-5, l2_eps = 1e-6;
  bool use_short_conv = true, use_beta = true, use_gate = false, allow_neg_eigval = false;
  std::string qk_activation = "silu", qk_norm = "l2";

  void describe(Fields& f) {
    f.add("heads", heads, "number of heads H; divides the key and the value width").at_least(1).also("num_heads");
    f.add("expand_k", expand_k, "key width as a part of the model width").greater_than(0);
    f.add("expand_v", expand_v, "value width as a part of the model width").greater_than(0);
    f.add("use_short_conv", use_short_conv, "a short causal convolution with SiLU on q, k and v");
    f.add("conv_size", conv_size, "its kernel").at_least(1);
    f.add("qk_activation", qk_activation, "on queries and keys").one_of({"silu", "relu", "elu", "identity"});
    f.add("qk_norm", qk_norm, "of queries and keys").one_of({"l2", "sum"});
    f.add("l2_eps", l2_eps, "eps of the l2 norm").greater_than(0);
    f.add("use_beta", use_beta, "false: writing strength 1");
    f.add("allow_neg_eigval", allow_neg_eigval, "writing strength up to 2");
    f.add("use_gate", use_gate, "gate the output by silu(W x)");
    f.add("norm_eps", norm_eps, "eps of each head's output norm").greater_than(0);
  }
};

/// DeltaNet (Schlag et al. 2021, arXiv 2102.11174; parallel form Yang et al. 2024, arXiv 2406.06484): writing a value
/// under a key first removes what was stored there, beta_t = sigmoid(W_b x) of it.
class DeltaNet final : public DeltaMixer {
 public:
  using Options = DeltaNetOptions;
  static constexpr const char* about =
      "S_t = (I - beta k k^T) S_{t-1} + beta k v^T: writing replaces (Yang et al. 2024)";
  static constexpr const char* trials[] = {
      "heads = 2", "heads = 3\nuse_gate = true\nallow_neg_eigval = true\nqk_activation = 'relu'",
      "heads = 2\nuse_short_conv = false\nqk_activation = 'elu'\nqk_norm = 'sum'\nexpand_k = 0.5",
      "heads = 2\nuse_beta = false\nconv_size = 2\nqk_activation = 'identity'"};

  DeltaNet(int64_t width, const Options& options);

 protected:
  Projected project(const Tensor& x, Memory& memory, const Columns& columns) override;
  Tensor finish(const Tensor& o, const Tensor& x) override;

 private:
  Tensor activated(const Tensor& x) const;
  Tensor normalized(const Tensor& x) const;

  Options options_;
  Linear q_proj_{nullptr}, k_proj_{nullptr}, v_proj_{nullptr}, b_proj_{nullptr}, g_proj_{nullptr}, o_proj_{nullptr};
  std::shared_ptr<RmsNorm> o_norm_;
};

}  // namespace seqloom
