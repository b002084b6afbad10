#pragma once
#include <optional>
#include <string>

#include "blocks/norm.h"
#include "blocks/positions.h"
#include "mixers/mixer.h"
#include "mixers/output_gate.h"

namespace seqloom {

struct RetNetOptions {
  int64_t heads = 8;
  double expand_k = 1.0, expand_v = 2.0, norm_eps = 1e-5;
  RopeOptions rope;
  std::string gate_fn = "swish";

  void describe(Fields& f) {
    f.add("heads", heads, "number of heads H; divides the key and the value width").at_least(1).also("num_heads");
    f.add("expand_k", expand_k, "key width as a part of the model width").greater_than(0).also("key_expansion");
    f.add("expand_v", expand_v, "value width as a part of the model width").greater_than(0).also("value_expansion");
    f.add("rope_base", rope.base, "frequencies fall from 1 to about 1 / base").greater_than(0);
    f.add("rope_layout", rope.layout, "which channels make a pair").one_of({"half", "interleaved"});
    describe_gate_fn(f, gate_fn);
    f.add("norm_eps", norm_eps, "eps of each head's output norm").greater_than(0);
  }
};

/// Retention (Sun et al. 2023, arXiv 2307.08621, eq. 5-8): each head forgets at its own fixed rate,
///   S_t = gamma_h S_{t-1} + k_t v_t^T,  o_t = S_t^T q_t / sqrt(K),  gamma_h = 1 - 2^{-5-h},
/// q and k turned by their positions; then an RMSNorm of each head and an output gate. Memory: S [B, H, K, V].
/// Element: S as if the run began at position 0. A run that begins n tokens later has the same S turned by n positions
/// along K, since turning is linear and commutes with a decay that is the same for all channels of a head.
class RetNet final : public ScannableMixer {
 public:
  using Options = RetNetOptions;
  static constexpr const char* about =
      "S_t = gamma_h S_{t-1} + k_t v_t^T: each head forgets at its own fixed rate (Sun et al. 2023)";
  static constexpr const char* trials[] = {
      "heads = 2", "heads = 3\nexpand_k = 0.5\nexpand_v = 1\nrope_layout = 'interleaved'\ngate_fn = 'sigmoid'",
      "heads = 6\nrope_base = 100\ngate_fn = 'identity'\nnorm_eps = 1e-3"};

  RetNet(int64_t width, const Options& options);

  Memory empty_memory(int64_t batch) const override;
  std::optional<MatrixForm> matrix(const Tensor& x) override;

  static Config from_case(Config config, const std::map<std::string, std::vector<int64_t>>& shapes);

 protected:
  bool takes_packed() const override { return true; }
  Tensor read(const Tensor& x, Memory& memory, Pass& pass) override;
  Memory identity_element(int64_t batch) const override { return empty_memory(batch); }
  Memory element(const Tensor& x, Memory& memory, Pass& pass) override;
  Memory combine_elements(const Memory& left, const Memory& right) const override;
  void apply_element(const Memory& element, Memory& memory) override;

 private:
  struct Projected {
    Tensor q, k, v, log_decay;  // q and k turned; [B, T, H, K], [B, T, H, K], [B, T, H, V], [B, T, H]
  };
  Projected project(const Tensor& x, const Tensor& positions, const Layout& layout);
  Tensor head_decays() const;                       // log gamma [H]
  Tensor finish(const Tensor& o, const Tensor& x);  // [B, T, H, V] -> [B, T, D]
  double scale() const;
  /// The state after `element`, which begins `before` tokens ([B] or [1] int64) after where `state` was counted from.
  Tensor appended(const Tensor& state, const Tensor& before, const Memory& element) const;

  Options options_;
  int64_t key_width_, value_width_;
  Tensor frequencies_;  // [K/2] float64
  Linear q_proj_{nullptr}, k_proj_{nullptr}, v_proj_{nullptr}, g_proj_{nullptr}, o_proj_{nullptr};
  std::shared_ptr<RmsNorm> g_norm_;
};

}  // namespace seqloom
