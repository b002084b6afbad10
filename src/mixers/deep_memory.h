#pragma once
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "blocks/norm.h"
#include "mixers/columns.h"
#include "mixers/mixer.h"
#include "ops/deep_memory.h"

namespace seqloom {

/// The weights W_1 .. W_L [H, out, in] of a memory network before any token: parameters memory.0.weight, ... of
/// `owner`.
std::vector<Tensor> register_memory_network(torch::nn::Module& owner, int64_t heads, int64_t in, int64_t hidden,
                                            int64_t out, int64_t layers);

struct DeepMemoryOptions {
  int64_t heads = 4;
  std::optional<int64_t> dim_head, memory_hidden;
  int64_t memory_depth = 2, chunk = 32, window = 1, poly_degree = 2, ns_steps = 5, conv_kernel = 4;
  bool residual = true, omega_gate = false, out_norm = true;
  std::string objective = "l2", loss_reduction = "sum", optimizer = "momentum", feature_map = "none";
  std::string qkv_activation = "silu", qk_norm = "l2", out_gate = "head";
  double max_lr = 0.1;

  void describe(Fields& f);
};

/// A memory that is a small network, trained by gradient descent while it reads: keys are its inputs, values its
/// targets (Titans, arXiv 2501.00663; ATLAS and OmegaNet, arXiv 2505.23735; the update is in ops/deep_memory.h).
///   q, k, v = heads(act(conv(x W))),  q, k = phi(q / |q|), phi(k / |k|)
///   a, mu, omega = sigmoid(x W + b),  lr = max_lr sigmoid(x W + b), each per head
///   y_t = M_t(q_t), normalised and gated per head, projected
/// `chunk` and `window` are part of the model: gradients are taken at the weights before a token's chunk, over the last
/// `window` tokens. There is no monoid across chunks, so it has no summaries: a stream is handed on.
///
/// Memory: memory.i, momentum.i (not for gd), chunk_start.i [B, H, out, in]; of the last window - 1 tokens window_k
/// [B, c-1, H, K], window_v [B, c-1, H, V], window_omega [B, c-1, H]; q_conv, k_conv, v_conv [B, kernel-1, H V]. A
/// row's count of tokens mod chunk is its place in its chunk. Padding is taken out before anything else and leaves no
/// trace. A state that is no longer finite is an Error naming the token.
class DeepMemory : public CausalMixer {
 public:
  DeepMemory(int64_t width, const DeepMemoryOptions& options);
  Memory empty_memory(int64_t batch) const override;

  static Config from_case(Config config, const std::map<std::string, std::vector<int64_t>>& shapes);

 protected:
  Tensor read(const Tensor& x, Memory& memory, Pass& pass) override;

 private:
  using State = ops::DeepMemoryState;
  struct WeightGroup {
    const char* name;
    std::vector<Tensor> State::*weights;
  };

  void add_projections();
  void add_features();
  std::vector<WeightGroup> groups() const;
  ops::DeepMemoryTokens project(const Tensor& x, Memory& memory, const Columns& columns);
  Tensor heads_of(const char* name, Linear& projection, const Tensor& x, Memory& memory, const Columns& columns);
  Tensor features(const Tensor& x) const;
  Tensor with_window(const char* name, const Tensor& fresh, Memory& memory, const Columns& columns) const;
  Tensor finish(const Tensor& o, const Tensor& x);  // [B, H, T, V], [B, T, D] -> [B, T, D]
  State load(const Memory& memory) const;
  bool store(const State& state, Memory& memory) const;  // whether all is finite
  [[noreturn]] void name_the_token(const Tensor& x, const Memory& before, const Pass& pass);

  DeepMemoryOptions options_;
  ops::DeepMemoryRule rule_;
  int64_t head_width_, feature_width_ = 0;
  Linear q_proj_{nullptr}, k_proj_{nullptr}, v_proj_{nullptr}, out_proj_{nullptr}, gate_proj_{nullptr};
  Linear retain_proj_{nullptr}, momentum_proj_{nullptr}, lr_proj_{nullptr}, omega_proj_{nullptr};
  std::map<std::string, Tensor> taps_;  // of the short convolutions, [H V, kernel]
  Tensor coeff_;
  std::vector<Tensor> initial_;
  std::shared_ptr<RmsNorm> out_norm_;
};

struct TitansOptions : DeepMemoryOptions {};

/// One step of momentum and forgetting a token.
class Titans final : public DeepMemory {
 public:
  using Options = TitansOptions;
  static constexpr const char* about =
      "the memory is an MLP, trained on each token with momentum and forgetting while it reads (Titans, Behrouz et al. "
      "2024)";
  static constexpr const char* trials[] = {
      "heads = 2\nchunk = 8",
      "heads = 2\nchunk = 1\nmemory_depth = 1\nresidual = false\nconv_kernel = 0\nqkv_activation = 'none'\n"
      "out_norm = false\nout_gate = 'none'",
      "heads = 3\ndim_head = 5\nchunk = 5\nmemory_depth = 3\nmemory_hidden = 7\nloss_reduction = 'mean'\nmax_lr = 0.3",
      "heads = 2\nchunk = 4\nobjective = 'dot'\nwindow = 3\nomega_gate = true\nqk_norm = 'none'\nmax_lr = 0.02"};
  Titans(int64_t width, const Options& options) : DeepMemory(width, options) {}
};

struct OmegaNetOptions : DeepMemoryOptions {
  OmegaNetOptions() {
    optimizer = "gd";
    feature_map = "elementwise";
    omega_gate = true;
    chunk = 16;
    window = 4;
    max_lr = 0.001;  // features of unit keys are about sqrt(K) long, and a chunk sums chunk * window of their gradients
  }
};

/// Plain gradient descent on the last `window` tokens, polynomial features.
class OmegaNet final : public DeepMemory {
 public:
  using Options = OmegaNetOptions;
  static constexpr const char* about =
      "a memory network that takes a gradient step on the last tokens at every token (OmegaNet, Behrouz et al. 2025)";
  static constexpr const char* trials[] = {
      "heads = 2\nchunk = 8\nmax_lr = 0.01",
      "heads = 2\ndim_head = 4\nmax_lr = 0.05\nchunk = 1\nwindow = 3\nmemory_depth = 1\nresidual = false\nfeature_map "
      "= 'full'",
      "heads = 2\nchunk = 3\nwindow = 7\nomega_gate = false\npoly_degree = 3\nmax_lr = 0.01"};
  OmegaNet(int64_t width, const Options& options) : DeepMemory(width, options) {}
};

struct AtlasOptions : DeepMemoryOptions {
  AtlasOptions() {
    optimizer = "muon";
    feature_map = "elementwise";
    omega_gate = true;
    chunk = 16;
    window = 4;
  }
};

/// OmegaNet whose momentum is orthogonalised before it is added (Muon).
class Atlas final : public DeepMemory {
 public:
  using Options = AtlasOptions;
  static constexpr const char* about =
      "a memory network trained on the last tokens with orthogonalised momentum while it reads (ATLAS, Behrouz et al. "
      "2025)";
  static constexpr const char* trials[] = {
      "heads = 2\nchunk = 4\nwindow = 3",
      "heads = 2\nchunk = 1\nwindow = 2\nmemory_depth = 1\nfeature_map = 'none'\nns_steps = 3\nresidual = false",
      "heads = 2\ndim_head = 4\nchunk = 8\nwindow = 4\nfeature_map = 'full'\nresidual = false\nmemory_hidden = 10"};
  Atlas(int64_t width, const Options& options) : DeepMemory(width, options) {}
};

}  // namespace seqloom
