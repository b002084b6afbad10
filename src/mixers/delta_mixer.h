#pragma once
#include <optional>

#include "mixers/mixer.h"
#include "mixers/short_conv.h"

namespace seqloom {

/// What the mixers on the delta rule share: S_t = e^{g_t} (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T, o_t =
/// S_t^T q_t. A mixer says how tokens become q, k, v, beta, g and how heads become outputs. Memory: S [B, H, K, V] and
/// the windows q_conv, k_conv, v_conv [B, C, W-1] of short convolutions. Element: the affine map of the state, P [B, H,
/// K, K] and S: state -> P state + S; combining is P = P_b P_a, S = P_b S_a + S_b. Dense, so it is for between chunks
/// and machines; inside a run the op's WY form is used.
class DeltaMixer : public ScannableMixer {
 public:
  using ScannableMixer::ScannableMixer;

  Memory empty_memory(int64_t batch) const override;
  std::optional<MatrixForm> matrix(const Tensor& x) override;

 protected:
  struct Projected {
    Tensor q, k, v;                   // [B, T, H, K], [B, T, H, K], [B, T, H, V]
    Tensor beta;                      // [B, T, H]
    std::optional<Tensor> log_decay;  // [B, T, H]
  };
  /// `columns` are those of x.
  virtual Projected project(const Tensor& x, Memory& memory, const Columns& columns) = 0;
  virtual Tensor finish(const Tensor& o, const Tensor& x) = 0;  // [B, T, H, V] -> [B, T, D]

  /// Called by the constructor of a mixer: sizes of the state, and short convolutions of kernel `conv_size` (0: none),
  /// of which v's is followed by SiLU and q's and k's if `qk_silu`.
  void set_up(int64_t heads, int64_t key_width, int64_t value_width, int64_t query_channels, int64_t conv_size,
              bool qk_silu);
  /// A projection of x through the short convolution that `name` ("q", "k", "v") has, if any.
  Tensor convolved(const Tensor& projection, const char* name, Memory& memory, const Columns& columns);
  bool has_conv() const { return q_conv1d_ != nullptr; }

  Tensor read(const Tensor& x, Memory& memory, Pass& pass) override;
  bool takes_packed() const override { return true; }
  int64_t reach() const override { return has_conv() ? q_conv1d_->kernel() - 1 : 0; }
  std::vector<std::string> context() const override;
  Memory identity_element(int64_t batch) const override;
  Memory element(const Tensor& x, Memory& memory, Pass& pass) override;
  Memory combine_elements(const Memory& left, const Memory& right) const override;
  void apply_element(const Memory& element, Memory& memory) override;

  int64_t heads_ = 0, key_width_ = 0, value_width_ = 0;

 private:
  double scale() const;
  Projected padding_removed(Projected p, const Tensor& keep) const;
  Projected projected(const Tensor& x, Memory& memory, const Layout& layout);

  std::shared_ptr<ShortConv> q_conv1d_, k_conv1d_, v_conv1d_;
};

}  // namespace seqloom
