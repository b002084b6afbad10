#pragma once

#include <cstdint>

#include "base/torch.h"

namespace seqloom::ops {

/// What Muon steps along at each of a chunk's n tokens: O_t = newton_schulz(S_t) of the momenta
///   S_t = carried_t S_0 + sum_i pushed_ti e_i h_i^T                                                     [out, in]
/// Neither S_t nor O_t is formed. With X = S where out <= in, S^T otherwise, and s = min(out, in), the Gram matrices
/// X_t X_t^T [s, s] follow from that of X_0 and products of low rank, O is newton_schulz_factor(X X^T) X, and a chunk
/// needs it only applied to a few vectors or summed.
class OrthogonalMomenta {
 public:
  using Tensor = torch::Tensor;

  /// momentum S_0 [B, H, out, in], errors e [B, H, m, out], inputs h [B, H, m, in], carried [B, H, n],
  /// pushed [B, H, n, m].
  OrthogonalMomenta(const Tensor& momentum, const Tensor& errors, const Tensor& inputs, const Tensor& carried,
                    const Tensor& pushed, int64_t ns_steps);

  /// sum_s weights_ts O_s z_t: weights [B, H, n, n], z [B, H, n, in] -> [B, H, n, out].
  Tensor read(const Tensor& weights, const Tensor& z) const;
  /// sum_s weights_s O_s: weights [B, H, n] -> [B, H, out, in].
  Tensor sum(const Tensor& weights) const;

 private:
  Tensor grams() const;
  Tensor read_wide(const Tensor& weights, const Tensor& z) const;
  Tensor read_tall(const Tensor& weights, const Tensor& z) const;

  bool tall_;
  Tensor first_, narrow_, wide_;  // X_0 [B, H, s, max]; of e and h the narrower [B, H, m, s] and the other [.., max]
  Tensor carried_, pushed_;
  Tensor factors_;  // [B, H, n, s, s], symmetric
};

}  // namespace seqloom::ops
