#pragma once
#include <memory>
#include <string>

#include "blocks/channel.h"
#include "blocks/norm.h"
#include "mixers/mixer.h"
#include "mixers/short_conv.h"

namespace seqloom {

struct ResidualOptions {
  std::string norm = "rms", residual = "pre";
  double norm_eps = 1e-5;

  void describe(Fields& f) {
    f.add("norm", norm, "norm of the residual stack").one_of({"rms", "layer"});
    f.add("norm_eps", norm_eps, "eps of the norms").greater_than(0);
    f.add("residual", residual, "pre: x + f(norm x); post: norm(x + f(x))").one_of({"pre", "post"});
  }
};

/// One layer of a stack: a token mixer and, where there is one, a channel mixer, each in a residual branch. A short
/// causal convolution may stand before the mixer (H3, Dao et al. 2023: it ties a token to those just before it, which a
/// mixer that only looks by content needs). Memory: the mixer's, or with a convolution conv [B, D, W-1] and the child
/// "mixer".
class ResidualBlock : public torch::nn::Module {
 public:
  ResidualBlock(int64_t width, const ResidualOptions& options, std::shared_ptr<Mixer> mixer,
                std::shared_ptr<ChannelMixer> channel, int64_t conv_size = 0);

  /// The training form, x [B, T, D].
  Tensor forward(const Tensor& x, Pass& pass);
  /// The streaming form. Throws UsageError when the mixer is not causal.
  Tensor extend(const Tensor& x, Memory& memory, Pass& pass);
  Memory empty_memory(int64_t batch) const;
  /// One more token of each of S streams, x [S, D] (CausalMixer::step).
  Tensor step(const Tensor& x, at::ArrayRef<Memory*> streams, Pass& pass);
  int64_t longest() const { return causal_mixer().longest(); }

  Mixer& mixer() { return *mixer_; }
  void replace_mixer(std::shared_ptr<Mixer> mixer);
  int64_t branches() const { return channel_ ? 2 : 1; }

 private:
  template <typename Mix>
  Tensor around(const Tensor& x, Mix mix);
  CausalMixer& causal_mixer() const;

  bool pre_;
  std::shared_ptr<ShortConv> conv_;
  std::shared_ptr<Mixer> mixer_;
  std::shared_ptr<ChannelMixer> channel_;
  std::shared_ptr<Norm> mixer_norm_, channel_norm_;
};

}  // namespace seqloom
