#pragma once
#include "blocks/norm.h"
#include "mixers/mixer.h"

namespace seqloom {

struct HgrnOptions {
  double lower_bound = 0;
  bool bias = true;

  void describe(Fields& f) {
    f.add("lower_bound", lower_bound, "the least a gate lets pass of the state; rises with depth in a stack")
        .at_least(0)
        .less_than(1);
    f.add("bias", bias, "biases in the projections");
  }
};

/// The HGRU of HGRN (Qin et al. 2023, arXiv 2311.04823, eq. 1-7): a gated recurrence of complex numbers, one a channel,
///   h_t = l_t e^{i theta} h_{t-1} + (1 - l_t) c_t,  l_t = lower + (1 - lower) sigmoid(W_l x),  c_t = silu(W_i x),
///   y = W_o(LayerNorm([Re h | Im h]) silu(W_g x)).
/// Memory: state [B, D, 2], real and imaginary parts. Element: log_decay [B, D] (sum of log l) and state; a run of n
/// tokens takes h to e^{log_decay + i n theta} h + state.
class Hgrn final : public ScannableMixer {
 public:
  using Options = HgrnOptions;
  static constexpr const char* about =
      "h_t = l_t e^{i theta} h_{t-1} + (1 - l_t) c_t, one complex number a channel, l above a floor (Qin et al. 2023)";
  static constexpr const char* trials[] = {"", "lower_bound = 0.6\nbias = false"};

  Hgrn(int64_t width, const Options& options);

  Memory empty_memory(int64_t batch) const override;
  std::vector<Tensor> without_weight_decay() const override { return {theta_}; }

 protected:
  bool takes_packed() const override { return true; }
  Tensor read(const Tensor& x, Memory& memory, Pass& pass) override;
  Memory identity_element(int64_t batch) const override;
  Memory element(const Tensor& x, Memory& memory, Pass& pass) override;
  Memory combine_elements(const Memory& left, const Memory& right) const override;
  void apply_element(const Memory& element, Memory& memory) override;

 private:
  struct Recurrence {
    Tensor log_decay;          // log l [B, T, D]
    Tensor transition, input;  // l e^{i theta} and (1 - l) c, complex [B, T, D]
  };
  Recurrence recurrence(const Tensor& x, const Layout& layout);
  Tensor appended(const Tensor& state, const Memory& element) const;

  Options options_;
  Linear input_proj_{nullptr}, lambda_proj_{nullptr}, gate_{nullptr}, out_proj_{nullptr};
  std::shared_ptr<Norm> norm_;
  Tensor theta_;  // [1, 1, D]
};

}  // namespace seqloom
