#pragma once
#include <string>

#include "mixers/mixer.h"
#include "mixers/output_gate.h"
#include "mixers/rwkv_parts.h"

namespace seqloom {

struct Rwkv6Options {
  int64_t heads = 4, proj_low_rank_dim = 32, gate_low_rank_dim = 64;
  double expand_k = 0.5, expand_v = 1.0, norm_eps = 1e-5;
  std::string gate_fn = "swish";

  void describe(Fields& f) {
    f.add("heads", heads, "number of heads H; divides the key and the value width").at_least(1).also("num_heads");
    f.add("expand_k", expand_k, "key width as a part of the model width").greater_than(0).also("key_expansion");
    f.add("expand_v", expand_v, "value width as a part of the model width").greater_than(0).also("value_expansion");
    f.add("proj_low_rank_dim", proj_low_rank_dim, "rank of each data dependent token mix").at_least(1);
    f.add("gate_low_rank_dim", gate_low_rank_dim, "rank of the decay's projection").at_least(1);
    describe_gate_fn(f, gate_fn);
    f.add("norm_eps", norm_eps, "eps of the output norm").greater_than(0);
  }
};

/// RWKV-6 (Peng et al. 2024, arXiv 2404.05892): linear attention that reads before it writes, with a bonus u for the
/// token itself and a decay for each key channel that depends on the data,
///   o_t = (S_{t-1} + diag(u) k_t v_t^T)^T r_t,  S_t = diag(e^{w_t}) S_{t-1} + k_t v_t^T,  w = -exp(W2 tanh(W1 .) + b).
/// Each projection is fed with a mix of the token and the one before that depends on both.
/// Memory: S [B, H, K, V] and shift [B, D], the last token. Element: log_decay [B, H, K] (sum of w) and S.
class Rwkv6 final : public ScannableMixer {
 public:
  using Options = Rwkv6Options;
  static constexpr const char* about =
      "linear attention with a data dependent decay for each key channel and token shift (RWKV-6, Peng et al. 2024)";
  static constexpr const char* trials[] = {
      "heads = 2",
      "heads = 3\nexpand_k = 1\nexpand_v = 0.5\nproj_low_rank_dim = 3\ngate_low_rank_dim = 5\n"
      "gate_fn = 'sigmoid'\nnorm_eps = 1e-3"};

  Rwkv6(int64_t width, const Options& options);

  Memory empty_memory(int64_t batch) const override;
  std::optional<MatrixForm> matrix(const Tensor& x) override;
  std::vector<Tensor> without_weight_decay() const override { return {x_bias_, bonus_}; }

 protected:
  bool takes_packed() const override { return true; }
  Tensor read(const Tensor& x, Memory& memory, Pass& pass) override;
  int64_t reach() const override { return 1; }
  std::vector<std::string> context() const override { return {"shift"}; }
  Memory identity_element(int64_t batch) const override;
  Memory element(const Tensor& x, Memory& memory, Pass& pass) override;
  Memory combine_elements(const Memory& left, const Memory& right) const override;
  void apply_element(const Memory& element, Memory& memory) override;

 private:
  struct Projected {
    Tensor r, k, v, w;  // [B, T, H, K], [B, T, H, K], [B, T, H, V], [B, T, H, K]
    Tensor gate;        // of the output [B, T, H V]
  };
  Projected project(const Tensor& x, Memory& memory, const Layout& layout);
  Tensor finish(const Tensor& o, const Tensor& gate);  // [B, T, H, V] -> [B, T, D]

  Options options_;
  int64_t key_width_, value_width_;
  Tensor mu_, x_bias_, bonus_;  // [D], [5, D], [H, K]
  Linear mix_down_{nullptr}, mix_up_{nullptr};
  Linear r_proj_{nullptr}, k_proj_{nullptr}, v_proj_{nullptr}, g_proj_{nullptr}, o_proj_{nullptr};
  std::shared_ptr<LowRank> w_proj_;
  std::shared_ptr<HeadNorm> g_norm_;
};

}  // namespace seqloom
