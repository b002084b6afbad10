#pragma once
#include <optional>
#include <string>

#include "mixers/window_mixer.h"

namespace seqloom {

/// What the four Extractors differ in; the defaults are SHE's.
struct ExtractorOptions {
  int64_t context_length = 64;
  std::string extract = "full", adjust = "linear";
  bool length_bias = true, out_proj = true, causal = true;

  void describe(Fields& f) {
    f.add("context_length", context_length,
          "tokens L that an output sees, its own included; older ones are forgotten. extract = full has L D^2 weights")
        .at_least(1)
        .at_most(1 << 20);
    f.add("extract", extract, "weights of a lag: a matrix, one for each channel, or one for all")
        .one_of({"full", "diag", "scalar"});
    f.add("adjust", adjust, "factor on what was extracted: W x + b, s * x + b, x, or none")
        .one_of({"linear", "diag", "input", "none"});
    f.add("length_bias", length_bias, "a bias for each number of tokens in sight");
    f.add("out_proj", out_proj, "an output projection");
    f.add("causal", causal, "false: the window is centred on the token");
  }
};

/// The Extractors (Chen 2023, arXiv 2308.07661), which replace attention by weights learned for each lag. The paper's
/// text could not be had: this is our reading of its abstract (shared design, specs/35-extractors).
///   e_t = sum_{j < L} W_j x_{t-j} + c_m,   y_t = W_o (e_t * a_t) + b_o,   a_t = W_a x_t + b_a
/// with m the number of tokens in sight, min(t + 1, L). Nothing in it is normalised: keep a norm before it.
/// Memory: hist [B, L-1, D], the last inputs, zero where there was none; n [B] int64, how many tokens the row has read,
/// padding not counted (a scalar stands for all rows). Tokens older than the window have no influence.
class Extractor : public WindowMixer {
 public:
  Extractor(int64_t width, const ExtractorOptions& options);

  bool causal() const override { return options_.causal; }
  Memory empty_memory(int64_t batch) const override;
  /// Each channel is a head, with weights for all channels there is one; none where lags have matrices.
  std::optional<MatrixForm> matrix(const Tensor& x) override;

 protected:
  Tensor mix(const Tensor& x, Pass& pass) override;
  bool takes_packed() const override { return true; }
  Tensor read(const Tensor& x, Memory& memory, Pass& pass) override;
  void apply_element(const Memory& element, Memory& memory) override;

 private:
  void add_adjustment();
  /// sum_j W_j x_{t-j}: before [B, L-1, D] are the inputs in front of x [B, T, D]; in front of packed rows there are
  /// zeros, [S, L-1, D].
  Tensor extracted(const Tensor& before, const Tensor& x, const Layout& layout) const;
  /// seen [B, T], tokens in sight -> e + c.
  Tensor with_length_bias(const Tensor& e, const Tensor& seen) const;
  Tensor finish(const Tensor& e, const Tensor& x);
  /// Tokens in sight of a centred window.
  Tensor seen_around(const Columns& columns) const;
  /// The tap of a window that stands at the token itself.
  int64_t current_tap() const;

  ExtractorOptions options_;
  Tensor taps_;  // [D, D, L], [D, 1, L] or [1, 1, L], the last for the latest input
  Tensor length_bias_, adjust_weight_, adjust_bias_;
  Linear out_proj_{nullptr};
};

struct SheOptions : ExtractorOptions {};

struct HeOptions : ExtractorOptions {
  HeOptions() { extract = "diag"; }
};

struct WeOptions : ExtractorOptions {
  WeOptions() { extract = "diag", adjust = "diag"; }
};

struct MeOptions : ExtractorOptions {
  MeOptions() { extract = "scalar", adjust = "input", length_bias = out_proj = false; }
};

/// The super high-performance Extractor: a matrix for each lag.
class ExtractorShe final : public Extractor {
 public:
  using Options = SheOptions;
  using Extractor::Extractor;
  static constexpr const char* about = "y_t = W_o ((sum_j W_j x_{t-j} + c) * (W_a x_t + b)): SHE (Chen 2023)";
  static constexpr const char* trials[] = {"context_length = 8", "context_length = 1\nlength_bias = false",
                                           "context_length = 70\nadjust = 'none'",
                                           "context_length = 6\ncausal = false"};
};

/// The higher-performance Extractor: a weight for each lag and channel.
class ExtractorHe final : public Extractor {
 public:
  using Options = HeOptions;
  using Extractor::Extractor;
  static constexpr const char* about = "y_t = W_o ((sum_j w_j * x_{t-j} + c) * (W_a x_t + b)): HE (Chen 2023)";
  static constexpr const char* trials[] = {"context_length = 8", "context_length = 80",
                                           "context_length = 66\ncausal = false"};
};

/// The worthwhile Extractor: its adjustment is one scale and shift for each channel.
class ExtractorWe final : public Extractor {
 public:
  using Options = WeOptions;
  using Extractor::Extractor;
  static constexpr const char* about = "y_t = W_o ((sum_j w_j * x_{t-j} + c) * (s * x_t + b)): WE (Chen 2023)";
  static constexpr const char* trials[] = {"context_length = 8", "context_length = 30\nout_proj = false"};
};

/// The minimalist Extractor: L weights in all.
class ExtractorMe final : public Extractor {
 public:
  using Options = MeOptions;
  using Extractor::Extractor;
  static constexpr const char* about = "y_t = x_t * sum_j w_j x_{t-j}, L scalars in all: ME (Chen 2023)";
  static constexpr const char* trials[] = {"context_length = 8", "context_length = 100\nlength_bias = true",
                                           "context_length = 5\ncausal = false"};
};

}  // namespace seqloom
