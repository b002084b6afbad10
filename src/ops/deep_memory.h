#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "base/torch.h"

namespace seqloom::ops {

/// How a memory that is a small network is trained by the tokens that it reads.
struct DeepMemoryRule {
  enum class Optimizer { kDescent, kMomentum, kMuon };

  Optimizer optimizer = Optimizer::kMomentum;
  bool residual = false;   // M(z) = network(z) + z
  bool hebbian = false;    // the loss is -<M(k), v> instead of |M(k) - v|^2
  bool mean_loss = false;  // the mean over v's channels instead of the sum
  int64_t chunk = 1;       // gradients are taken at the weights before the token's chunk
  int64_t window = 1;      // c: a token's loss is the sum over its last c tokens (Omega rule)
  int64_t ns_steps = 5;

  bool has_momentum() const { return optimizer != Optimizer::kDescent; }
};

/// The weights W_1 .. W_L [B, H, out, in] of the memory, their momentum (empty for kDescent), and those before the
/// running chunk.
struct DeepMemoryState {
  std::vector<torch::Tensor> memory, momentum, chunk_start;
};

/// T tokens, and for k, v and omega the window - 1 tokens before them as well.
struct DeepMemoryTokens {
  torch::Tensor q;             // [B, H, T, K]
  torch::Tensor k, v;          // [B, H, window - 1 + T, K], [.., V]
  torch::Tensor omega;         // [B, H, window - 1 + T], weight of each token's loss; 0 where there is no token
  torch::Tensor log_retain;    // [B, H, T]
  torch::Tensor log_momentum;  // [B, H, T]; unused by kDescent
  torch::Tensor lr;            // [B, H, T]
  torch::Tensor real;          // [B, T] bool, false where there is no token; undefined: all are
};

/// Reads the running weights of a chunk's tokens, without ever forming them (kDescent, kMomentum):
///   M_t h = kept_t M_0 h + drift_t S_0 h + sum_i written_ti (h . input_i) error_i
struct ChunkReads {
  torch::Tensor kept, drift, written;           // [B, H, n]; kMomentum [B, H, n]; [B, H, n, m]
  std::vector<torch::Tensor> memory, momentum;  // M_0 and, with kMomentum, S_0 [B, H, out, in]
  std::vector<torch::Tensor> inputs, errors;    // of the tokens' gradients, [B, H, m, in], [B, H, m, out]

  /// W_l h of the weights after each token: h [B, H, n, in] -> [B, H, n, out].
  torch::Tensor product(size_t l, const torch::Tensor& h) const;
};

/// A memory that is a network, M(z) = W_L gelu(.. gelu(W_1 z)) (+ z), trained by gradient descent while it reads:
/// Titans (Behrouz et al. 2024, arXiv 2501.00663) and ATLAS (2025, arXiv 2505.23735). With G_t the gradient, at the
/// weights before t's chunk, of sum_{t-c < i <= t} omega_i loss(M(k_i), v_i):
///   kDescent    M_t = a_t M_{t-1} - lr_t G_t
///   kMomentum   S_t = mu_t S_{t-1} - lr_t G_t,   M_t = a_t M_{t-1} + S_t
///   kMuon       S_t = mu_t S_{t-1} + G_t,        M_t = a_t M_{t-1} - lr_t newton_schulz(S_t)
/// and y_t = M_t(q_t). `phase` tokens of the running chunk have been read before. Returns y [B, H, T, V] and advances
/// the state; what is not real changes nothing (momentum has no gate values that do nothing, so it is left out).
///
/// A loop over chunks. In a chunk all gradients are one pass of the network forwards and backwards, in closed form; the
/// scans over a_t and mu_t are triangular matrices, so that kDescent and kMomentum read and write without ever forming
/// a G_t. kMuon needs of every token matrices of a layer's narrower side [.., s, s] (ops/orthogonal_momenta.h), those
/// of one chunk at a time, and forms them once more in the backward pass.
/// `reads`, where given, collects what reads the running weights of each chunk (not for kMuon).
torch::Tensor deep_memory(const DeepMemoryRule& rule, const DeepMemoryTokens& tokens, int64_t phase,
                          DeepMemoryState& state, std::vector<ChunkReads>* reads = nullptr);

/// The network with `product(l, h)` for W_l h: z [.., K] -> [.., V].
torch::Tensor through_network(int64_t layers, const torch::Tensor& z, bool residual,
                              const std::function<torch::Tensor(size_t, const torch::Tensor&)>& product);

}  // namespace seqloom::ops
