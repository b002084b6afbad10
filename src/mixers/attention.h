#pragma once
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "blocks/norm.h"
#include "blocks/positions.h"
#include "mixers/columns.h"
#include "mixers/mixer.h"
#include "ops/attention.h"

namespace seqloom {

struct AttentionOptions {
  int64_t heads = 4;
  std::optional<int64_t> kv_heads, head_dim, window, rotary_dim;
  std::optional<double> scale, logit_softcap;
  bool causal = true, qk_norm = false, qkv_bias = false, o_bias = false;
  double qk_norm_eps = 1e-6;
  std::string position = "none", rope_layout = "half", bias = "unique";
  double rope_base = 10000;
  Config rope_scaling = Config::object(), carope = Config::object();
  int64_t max_positions = 2048, num_buckets = 32, max_distance = 128;

  void describe(Fields& f) {
    f.add("heads", heads, "query heads H").at_least(1).at_most(1 << 12).also("num_heads");
    f.add("kv_heads", kv_heads, "key and value heads, which divide H; none: as many").at_least(1).at_most(1 << 12);
    f.add("head_dim", head_dim, "width of a head; none: width / heads").at_least(1).at_most(1 << 16);
    f.add("causal", causal, "false: every token sees the whole sequence");
    f.add("window", window, "keys a token sees, its own included; none: all").at_least(1).at_most(1 << 30);
    f.add("scale", scale, "factor on q.k; none: head_dim^-0.5").greater_than(0);
    f.add("logit_softcap", logit_softcap, "c tanh(score / c); none: off").greater_than(0);
    f.add("qk_norm", qk_norm, "RMSNorm of each head's queries and keys before positions");
    f.add("qk_norm_eps", qk_norm_eps, "eps of that norm").greater_than(0);
    f.add("qkv_bias", qkv_bias, "biases in the q, k and v projections");
    f.add("o_bias", o_bias, "bias in the output projection");
    f.add("position", position, "how positions enter")
        .one_of({"none", "learned", "sinusoidal", "rope", "alibi", "t5_bias", "urpe", "carope"});
    f.add("rope_base", rope_base, "rope: frequencies fall from 1 to about 1 / base").greater_than(0);
    f.add("rope_layout", rope_layout, "rope, carope: which channels make a pair").one_of({"half", "interleaved"});
    f.add("rotary_dim", rotary_dim, "rope: channels that turn; none: all").at_least(2);
    f.add("rope_scaling", rope_scaling, "rope: { rope_type = \"linear\" | \"llama3\", factor = ... }");
    f.add("max_positions", max_positions, "learned, urpe: longest sequence").at_least(1).at_most(1 << 24);
    f.add("num_buckets", num_buckets, "t5_bias, urpe with bias t5: buckets of relative positions")
        .at_least(2)
        .at_most(1 << 20);
    f.add("max_distance", max_distance, "the same: distances from here on share a bucket").at_least(2).at_most(1 << 30);
    f.add("bias", bias, "urpe: the bias beside the factor").one_of({"t5", "unique", "none"});
    f.add("carope", carope, "carope: { bias = true, first_exponent = 0, base = 10000 }");
  }
};

/// Softmax attention (Vaswani et al. 2017, arXiv 1706.03762), grouped queries (arXiv 2305.13245), sliding window, and
/// the position schemes of blocks/positions.h; URPE (arXiv 2205.13401) multiplies the softmax's weights by a Toeplitz
/// factor, CARoPE (arXiv 2507.23083) turns by phases that depend on the tokens. pass.context makes it cross-attention.
/// Memory: k (after norm and rope), v [B, Hkv, n, d] in time order, with a window the last window - 1; keep [B, n]
/// bool, which keys are real, empty as long as all are; carope: phase [B, Hkv, d/2], whole turns left out when it grows
/// large. Element: the tokens themselves, x [B, n, D], with a window the last window - 1 (the truncated free monoid).
class Attention final : public ScannableMixer {
 public:
  using Options = AttentionOptions;
  static constexpr const char* about =
      "softmax(q K^T) V over all earlier tokens or a window of them (Vaswani et al. 2017)";
  static constexpr const char* trials[] = {
      "heads = 2",
      "heads = 4\nkv_heads = 2\nposition = 'rope'",
      "heads = 2\nwindow = 5\nposition = 'rope'\nrope_layout = 'interleaved'\nrotary_dim = 4",
      "heads = 3\nposition = 'alibi'\nqkv_bias = true\no_bias = true",
      "heads = 2\nposition = 'learned'\nmax_positions = 64",
      "heads = 2\nposition = 'sinusoidal'\nwindow = 1",
      "heads = 2\nqk_norm = true\nlogit_softcap = 2.0\nscale = 0.7\nhead_dim = 5",
      "heads = 2\nposition = 't5_bias'\nnum_buckets = 8\nmax_distance = 12",
      "heads = 2\nposition = 'urpe'\nmax_positions = 64",
      "heads = 4\nkv_heads = 2\nhead_dim = 6\nposition = 'carope'\nwindow = 9",
      "heads = 3\ncausal = false"};

  Attention(int64_t width, const Options& options);

  bool causal() const override { return options_.causal; }
  Memory empty_memory(int64_t batch) const override;
  int64_t longest() const override;
  std::optional<MatrixForm> matrix(const Tensor& x) override;
  std::vector<Tensor> without_weight_decay() const override;

  static Config from_case(Config config, const std::map<std::string, std::vector<int64_t>>& shapes);

 protected:
  Tensor mix(const Tensor& x, Pass& pass) override;
  /// Not where weights are multiplied by distance.
  bool takes_packed() const override;
  Tensor read(const Tensor& x, Memory& memory, Pass& pass) override;
  Tensor read_each(const Tensor& x, at::ArrayRef<Memory*> streams, Pass& pass) override;
  Memory identity_element(int64_t batch) const override;
  Memory element(const Tensor& x, Memory& memory, Pass& pass) override;
  Memory combine_elements(const Memory& left, const Memory& right) const override;
  void apply_element(const Memory& element, Memory& memory) override;

 private:
  /// Tokens on their way to scores.
  struct Placed {
    Tensor x;       // [B, T, D], learned and sinusoidal vectors added
    Tensor angles;  // rope [T, d/2] or [B, 1, T, d/2], carope [B, Hkv, T, d/2]; undefined: nothing turns
    Tensor phase;   // carope: after the last token, [B, Hkv, d/2]
  };

  Tensor mix_packed(const Tensor& x, const Pass& pass);
  /// x [S, D] with the position vectors of a step, where there are such.
  Tensor placed(const Tensor& x, const std::vector<int64_t>& positions) const;
  bool is(const char* scheme) const { return options_.position == scheme; }
  void add_position_parameters();
  void add_carope();
  /// keep [B, T] or undefined; phase [B, Hkv, d/2] before the first token, or undefined; rows may be packed in one.
  Placed place(const Tensor& x, const Tensor& positions, const Tensor& keep, const Tensor& phase,
               const Layout& layout = {}) const;
  Tensor queries(const Placed& tokens);                         // [B, H, T, d]
  std::pair<Tensor, Tensor> keys_values(const Placed& tokens);  // [B, Hkv, S, d] each
  void check_context(int64_t rows, const Tensor& context) const;
  void check_memory(const Memory& memory, int64_t batch) const;
  /// Appends to the cache and keeps the last `limit` entries, all when limit < 0.
  void remember(const Tensor& k, const Tensor& v, const Tensor& keep, Memory& memory, int64_t limit) const;
  /// Moves each row's last real token to the end of the cache and drops what no later query sees.
  void forget(const Columns& columns, Memory& memory) const;
  void trim(Memory& memory) const;
  double scale() const;
  /// The rule for `queries` tokens that look at `keys` of them; throws UsageError where a table is too short.
  ops::AttentionRule rule_for(int64_t queries, int64_t keys, const Tensor& keep) const;
  /// The bias of scores by distance up to `farthest`, [H, 2 M + 1] (AttentionRule); undefined where there is none.
  Tensor bias(int64_t farthest) const;
  Tensor finish(const Tensor& o);  // [B, H, T, d] -> [B, T, D]
  int64_t element_limit() const;

  Options options_;
  int64_t kv_heads_, head_dim_;
  int64_t first_exponent_ = 0;
  Linear q_proj_{nullptr}, k_proj_{nullptr}, v_proj_{nullptr}, o_proj_{nullptr};
  std::shared_ptr<RmsNorm> q_norm_, k_norm_;
  torch::nn::Embedding position_{nullptr}, t5_table_{nullptr};
  Linear carope_{nullptr};
  Tensor urpe_c_, rel_bias_;
  Tensor frequencies_, slopes_;  // rope [d_rot/2] float64, alibi [H]
};

}  // namespace seqloom
