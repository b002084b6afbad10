#pragma once
#include <optional>
#include <vector>

#include "blocks/norm.h"
#include "mixers/mixer.h"
#include "mixers/short_conv.h"
#include "mixers/step_size.h"

namespace seqloom {

struct Mamba2Options {
  int64_t d_state = 128, d_conv = 4, expand = 2, headdim = 64, ngroups = 1, chunk_size = 64;
  std::optional<int64_t> d_ssm;
  bool rmsnorm = true, norm_before_gate = false, d_has_hdim = false, bias = false, conv_bias = true;
  double norm_eps = 1e-5;
  std::vector<double> dt_limit = {0};
  StepSizeInit step;

  void describe(Fields& f) {
    f.add("d_state", d_state, "state size N of one channel").at_least(1).also("state");
    f.add("d_conv", d_conv, "kernel W of the short convolution").at_least(1).also("conv");
    f.add("expand", expand, "inner width E as a multiple of the model width").at_least(1);
    f.add("headdim", headdim, "width P of a head; divides d_ssm").at_least(1).also("head_dim");
    f.add("ngroups", ngroups, "groups of heads that share B and C; divides the number of heads").at_least(1);
    f.add("d_ssm", d_ssm, "channels that pass through the scan, the rest of E is a gated MLP; none: all").at_least(1);
    f.add("rmsnorm", rmsnorm, "norm of the scan's output, a group at a time; false: its gate alone");
    f.add("norm_eps", norm_eps, "eps of that norm").greater_than(0);
    f.add("norm_before_gate", norm_before_gate, "norm(y) silu(z) in place of norm(y silu(z))");
    f.add("d_has_hdim", d_has_hdim, "the skip D has an entry a channel, not a head").also("D_has_hdim");
    f.add("dt_limit", dt_limit, "bounds of the step size: [low] or [low, high]").at_least(0);
    f.add("bias", bias, "biases in the input and output projections");
    f.add("conv_bias", conv_bias, "bias in the convolution");
    f.add("chunk_size", chunk_size, "tokens that are worked on together; changes the speed only").at_least(1);
    step.describe(f);
  }
};

/// Mamba-2 (Dao & Gu 2024, arXiv 2405.21060, sec. 7): with [z0 | x0 | z | x | B | C | dt] = in_proj(u) and
/// (x, B, C) = silu(conv(x | B | C)), for each head of width P with one decay rate A < 0 and dt = softplus(dt + bias):
///   h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T,   y_t = h_t C_t + D x_t
///   out = out_proj([silu(z0) x0 | norm(y, silu(z))])
/// z0, x0 are there only when d_ssm < E. Memory: conv [B, d_ssm + 2 G N, W-1] (last inputs of the convolution),
/// ssm [B, H, P, N]. Element: log_decay = A sum dt [B, H] and the state from zero, ssm [B, H, P, N].
class Mamba2 final : public ScannableMixer {
 public:
  using Options = Mamba2Options;
  static constexpr const char* about =
      "h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T with one decay a head: Mamba-2, SSD (Dao & Gu 2024)";
  static constexpr const char* trials[] = {
      "d_state = 4\nheaddim = 8",
      "d_state = 3\nheaddim = 4\nngroups = 3\nd_conv = 3\nnorm_before_gate = true\nd_has_hdim = true\nbias = true",
      "d_state = 4\nheaddim = 6\nexpand = 1\nrmsnorm = false\ndt_limit = [0.05, 0.5]\nconv_bias = false\n"
      "chunk_size = 8\ndt_min = 0.01\ndt_max = 0.2\ndt_init_floor = 0.001",
      "d_state = 2\nheaddim = 8\nd_ssm = 32\nngroups = 2\nd_conv = 1\ndt_limit = [0.1]"};

  Mamba2(int64_t width, const Options& options);

  Memory empty_memory(int64_t batch) const override;
  std::optional<MatrixForm> matrix(const Tensor& x) override;
  std::vector<Tensor> without_weight_decay() const override { return {A_log_, D_, dt_bias_}; }
  /// Cases write an absent upper bound of dt_limit as null.
  static Config from_case(Config config, const std::map<std::string, std::vector<int64_t>>& shapes);

 protected:
  bool takes_packed() const override { return true; }
  Tensor read(const Tensor& x, Memory& memory, Pass& pass) override;
  Tensor read_each(const Tensor& x, at::ArrayRef<Memory*> streams, Pass& pass) override;
  int64_t reach() const override { return options_.d_conv - 1; }
  std::vector<std::string> context() const override { return {"conv"}; }
  Memory identity_element(int64_t batch) const override;
  Memory element(const Tensor& x, Memory& memory, Pass& pass) override;
  Memory combine_elements(const Memory& left, const Memory& right) const override;
  void apply_element(const Memory& element, Memory& memory) override;

 private:
  /// What the scan eats, and what passes beside it.
  struct Selected {
    Tensor mlp;   // silu(z0) x0 [B, T, E - d_ssm], undefined without
    Tensor x, z;  // [B, T, H, P]
    Tensor dt;    // [B, T, H] after its rule, at least float32
    Tensor B, C;  // [B, T, G, N]
  };
  Selected select(const Tensor& u, Memory& memory, const Layout& layout);
  std::tuple<Tensor, Tensor> scan(const Selected& s, const Tensor& initial_state, const Layout& layout) const;
  Tensor finish(const Tensor& y, const Selected& s, torch::ScalarType type);  // y [..., H, P] -> [..., D]
  Tensor state_like(int64_t batch) const;                                     // zeros [B, H, P, N]
  Tensor A() const;
  Tensor skip() const;  // D [H] or [H, P]

  Options options_;
  int64_t inner_, ssm_, heads_;
  Linear in_proj_{nullptr}, out_proj_{nullptr};
  std::shared_ptr<ShortConv> conv1d_;
  std::shared_ptr<RmsNorm> norm_;
  Tensor A_log_, D_, dt_bias_;
};

}  // namespace seqloom
