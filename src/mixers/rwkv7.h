#pragma once
#include <optional>

#include "mixers/mixer.h"
#include "mixers/rwkv_parts.h"

namespace seqloom {

struct Rwkv7Options {
  std::optional<int64_t> heads, decay_low_rank_dim, a_low_rank_dim, v_low_rank_dim, gate_low_rank_dim;
  int64_t layer = 0;
  double norm_eps = 1e-5;

  void describe(Fields& f) {
    f.add("heads", heads, "number of heads H; divides the width; none: one for each 64 channels")
        .at_least(1)
        .also("num_heads");
    f.add("layer", layer, "0: hands its values on as v_first; above: mixes those of layer 0 into its own")
        .at_least(0)
        .also("layer_idx");
    const char* rank = "; none: max(32, 2.5 sqrt(D) rounded to a multiple of 32)";
    f.add("decay_low_rank_dim", decay_low_rank_dim, std::string("rank of the decay's projection") + rank).at_least(1);
    f.add("a_low_rank_dim", a_low_rank_dim, std::string("rank of the in-context learning rate's") + rank).at_least(1);
    f.add("v_low_rank_dim", v_low_rank_dim, std::string("rank of the value mix's") + rank).at_least(1);
    f.add("gate_low_rank_dim", gate_low_rank_dim, std::string("rank of the output gate's") + rank).at_least(1);
    f.add("norm_eps", norm_eps, "eps of the output norm, times the head width").greater_than(0);
  }
};

/// RWKV-7 (Peng et al. 2025, arXiv 2503.14456): a delta rule whose decay, removal key and replacement key are vectors,
///   S_t = diag(e^{w_t}) S_{t-1} - kk_t a_t (kk_t^T S_{t-1}) + k_t v_t^T read by r_t,  w = -e^{-1/2} sigmoid(.)
/// each projection fed with a mix of the token and the one before. Layers above 0 mix the values of layer 0, which
/// travel in pass.values["v_first"] [B, T, D], into their own.
/// Memory: S [B, H, K, K] and shift [B, D], the last token. Element: the affine map of the state, P [B, H, K, K] and S:
/// state -> P state + S; combining is P = P_b P_a, S = P_b S_a + S_b. Dense, so for between chunks and machines only.
class Rwkv7 final : public ScannableMixer {
 public:
  using Options = Rwkv7Options;
  static constexpr const char* about =
      "S_t = (diag(w) - kk (kk a)^T) S_{t-1} + k v^T: a delta rule with vector gates (RWKV-7, Peng et al. 2025)";
  static constexpr const char* trials[] = {
      "heads = 2", "heads = 3\ndecay_low_rank_dim = 4\na_low_rank_dim = 5\ngate_low_rank_dim = 6\nnorm_eps = 1e-3",
      "heads = 2\nlayer = 1\nv_low_rank_dim = 4"};

  Rwkv7(int64_t width, const Options& options);

  Memory empty_memory(int64_t batch) const override;
  std::optional<MatrixForm> matrix(const Tensor& x) override;
  std::vector<std::string> takes() const override;
  std::vector<Tensor> without_weight_decay() const override { return {r_k_}; }

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
    Tensor r, w, k, v, a, b;  // [B, T, H, K], as ops::rwkv7 takes them
    Tensor gate;              // of the output [B, T, D]
  };
  Projected project(const Tensor& x, Memory& memory, Pass& pass);
  /// This layer's values [B, T, D]; hands them on or mixes layer 0's in.
  Tensor values(const Tensor& mixed, Pass& pass);
  Tensor bonus(const Projected& p) const;              // what a token adds to its own output, times v: [B, T, H, 1]
  Tensor finish(const Tensor& o, const Projected& p);  // [B, T, H, K] -> [B, T, D]

  Options options_;
  int64_t heads_, head_width_;
  Tensor x_r_, x_w_, x_k_, x_v_, x_a_, x_g_, k_k_, k_a_, r_k_;
  Linear r_proj_{nullptr}, k_proj_{nullptr}, v_proj_{nullptr}, o_proj_{nullptr};
  std::shared_ptr<LowRank> w_lora_, a_lora_, v_lora_, g_lora_;
  std::shared_ptr<HeadNorm> g_norm_;
};

}  // namespace seqloom
