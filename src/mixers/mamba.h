#pragma once
#include <optional>

#include "mixers/mixer.h"
#include "mixers/short_conv.h"
#include "mixers/step_size.h"

namespace seqloom {

struct MambaOptions {
  int64_t d_state = 16, d_conv = 4, expand = 2;
  std::optional<int64_t> dt_rank;
  bool bias = false, conv_bias = true;
  StepSizeInit step;
  double dt_scale = 1.0;

  void describe(Fields& f) {
    f.add("d_state", d_state, "state size N of one channel").at_least(1).also("state");
    f.add("d_conv", d_conv, "kernel W of the short convolution").at_least(1).also("conv");
    f.add("expand", expand, "inner width E as a multiple of the model width").at_least(1);
    f.add("dt_rank", dt_rank, "rank R of the step size projection; auto: width / 16, rounded up").at_least(1);
    f.add("bias", bias, "biases in the input and output projections");
    f.add("conv_bias", conv_bias, "bias in the convolution");
    step.describe(f);
    f.add("dt_scale", dt_scale, "factor on the initial step size projection").greater_than(0);
  }
};

/// Mamba (Gu & Dao 2023, arXiv 2312.00752): a gated selective state space model. With [u | z] = in_proj(x) and
/// u = silu(conv(u)), the step size delta and the maps B, C are projections of u:
///   h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t,   y_t = C_t . h_t + D u_t,   out = out_proj(y * silu(z))
/// Memory: conv [B, E, W-1] (last inputs of the convolution), ssm [B, E, N].
/// Element: log_decay = A sum delta [B, E, N] and the state from zero, ssm [B, E, N].
class Mamba final : public ScannableMixer {
 public:
  using Options = MambaOptions;
  static constexpr const char* about =
      "h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t with delta, B, C from the token (Gu & Dao 2023)";
  static constexpr const char* trials[] = {
      "d_state = 4", "d_state = 3\nd_conv = 3\nexpand = 1\ndt_rank = 4\nconv_bias = false\nbias = true",
      "d_state = 2\nd_conv = 1"};

  Mamba(int64_t width, const Options& options);

  Memory empty_memory(int64_t batch) const override;
  std::optional<MatrixForm> matrix(const Tensor& x) override;
  std::vector<Tensor> without_weight_decay() const override { return {A_log_, D_, dt_proj_->bias}; }

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
  /// What the scan eats, token-major.
  struct Selected {
    Tensor u, z, delta;  // [B, T, E]; delta after softplus when `positive`
    Tensor B, C;         // [B, T, N]
    bool positive;
  };
  Selected select(const Tensor& x, Memory& memory, const Layout& layout);
  std::pair<Tensor, Tensor> scan(const Selected& s, bool gated, const Tensor& initial_state, const Layout& layout);
  Tensor step_size(const Selected& s) const;  // softplus(delta + bias), at least float32
  Tensor A() const;

  Options options_;
  int64_t inner_, rank_;
  Linear in_proj_{nullptr}, x_proj_{nullptr}, dt_proj_{nullptr}, out_proj_{nullptr};
  std::shared_ptr<ShortConv> conv1d_;
  Tensor A_log_, D_;
  Derived rates_;  // A as [N, E]
};

}  // namespace seqloom
