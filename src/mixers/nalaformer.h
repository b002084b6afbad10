#pragma once
#include <optional>
#include <string>

#include "blocks/grid_conv.h"
#include "blocks/norm.h"
#include "mixers/mixer.h"
#include "mixers/short_conv.h"

namespace seqloom {

struct NalaformerOptions {
  int64_t heads = 4;
  std::string layout = "1d";
  std::optional<int64_t> height, width;
  bool causal = true, rope = true;
  double power = 3, power_offset = 0.5, eps = 1e-6, ln_eps = 1e-5;
  int64_t lepe_kernel = 5;

  void describe(Fields& f) {
    f.add("heads", heads, "number of heads H; divides the model width").at_least(1).also("num_heads");
    f.add("layout", layout, "1d: a sequence; 2d: the tokens are an image's pixels, row by row").one_of({"1d", "2d"});
    f.add("height", height, "2d: rows of the image; none: as many as there are").at_least(1);
    f.add("width", width, "2d: pixels of a row").at_least(1);
    f.add("causal", causal, "false: every token sees the whole sequence; 2d has no other form");
    f.add("rope", rope, "queries and keys turn with their position, outside the normaliser");
    f.add("power", power, "exponent of the keys, and factor of the queries' exponent").at_least(1);
    f.add("power_offset", power_offset, "the queries' exponent is power (power_offset + tanh |q|)").at_least(0);
    f.add("lepe_kernel", lepe_kernel,
          "kernel of the convolution of the values that is added, 0: none; odd unless causal")
        .at_least(0);
    f.add("eps", eps, "added to the normaliser's mean over the keys").at_least(0);
    f.add("ln_eps", ln_eps, "eps of the output's norm").greater_than(0);
  }
};

/// Norm-aware linear attention (NaLaFormer, arXiv 2506.21137). Plain linear attention divides the norm n of a query
/// out; here it is the exponent of the query's direction, so that long queries look sharply:
///   p = power (power_offset + tanh n),  q' = [(relu(q)/n)^p ; (relu(-q)/n)^p],  k' = [relu(k)^power ; relu(-k)^power]
///   o_t = (R_t q'_t) . sum_s (R_s k'_s) v_s^T / (q'_t . sum_s k'_s + eps N)
///   y = W ( LayerNorm(o + lepe) * silu(g) ),  lepe = a depthwise convolution of v
/// R rotates both halves by the token's position (where `rope`), the normaliser is not rotated. Sums are over s <= t
/// and N = t where causal, else over all N tokens.
/// Memory: S [B, H, 2K, K] (of rotated keys), z [B, H, 2K], lepe [B, D, lepe_kernel-1]. Element: S and z as if its
/// first token were at position 0; combining turns the right one's S by the left one's length and adds.
class Nalaformer final : public ScannableMixer {
 public:
  using Options = NalaformerOptions;
  static constexpr const char* about =
      "linear attention whose queries' norm sets how sharply they look (NaLaFormer, arXiv 2506.21137)";
  static constexpr const char* trials[] = {"heads = 2",
                                           "heads = 3\nlepe_kernel = 0\npower = 2\npower_offset = 0.7\neps = 1e-3",
                                           "heads = 2\nlepe_kernel = 1\npower = 2.5\npower_offset = 0\nrope = false",
                                           "heads = 4\nlepe_kernel = 4",
                                           "heads = 4\ncausal = false\nlepe_kernel = 3",
                                           "heads = 2\ncausal = false\nlepe_kernel = 0",
                                           "heads = 2\nlayout = '2d'\nwidth = 1\ncausal = false"};

  Nalaformer(int64_t width, const Options& options);

  bool causal() const override { return options_.causal; }
  Memory empty_memory(int64_t batch) const override;
  std::optional<MatrixForm> matrix(const Tensor& x) override;

  static Config from_case(Config config, const std::map<std::string, std::vector<int64_t>>& shapes);

 protected:
  Tensor mix(const Tensor& x, Pass& pass) override;
  /// An image is a row of a batch.
  bool takes_packed() const override { return options_.layout != "2d"; }
  Tensor read(const Tensor& x, Memory& memory, Pass& pass) override;
  int64_t reach() const override { return std::max<int64_t>(0, options_.lepe_kernel - 1); }
  std::vector<std::string> context() const override;
  Memory identity_element(int64_t batch) const override;
  Memory element(const Tensor& x, Memory& memory, Pass& pass) override;
  Memory combine_elements(const Memory& left, const Memory& right) const override;
  void apply_element(const Memory& element, Memory& memory) override;

 private:
  struct Projected {
    Tensor q, k;                // features as the normaliser takes them, [B, T, H, 2K], at least float32
    Tensor q_turned, k_turned;  // the same, rotated by position
    Tensor v, gate;             // [B, T, D]
  };
  Projected project(const Tensor& x, const Tensor& keep, const Tensor& angles);
  Tensor query_features(const Tensor& q) const;
  Tensor key_features(const Tensor& k) const;
  Tensor angles(const Tensor& x, const Tensor& positions) const;
  Tensor grid_angles(int64_t tokens) const;  // [T, K/2]
  /// S [B, H, 2K, K] of tokens that stand `tokens` later, [B] or [1] int64.
  Tensor moved(const Tensor& S, const Tensor& tokens) const;
  /// The value's convolution, not causal. v [B, T, D].
  Tensor lepe(const Tensor& v, const Columns& columns);
  /// o [B, T, H, K], lepe [B, T, D] or undefined -> y [B, T, D].
  Tensor finish(const Tensor& o, const Tensor& lepe, const Tensor& gate);

  Options options_;
  int64_t head_width_;  // K
  Linear qkvg_{nullptr}, out_proj_{nullptr};
  std::shared_ptr<ShortConv> conv1d_;
  std::shared_ptr<GridConv> conv2d_;
  std::shared_ptr<Norm> ln_;
  Tensor frequencies_;  // [K/2], 2d: [K/4]; float64
};

}  // namespace seqloom
