#pragma once
#include <memory>
#include <optional>

#include "blocks/grid_conv.h"
#include "blocks/norm.h"
#include "mixers/mixer.h"

namespace seqloom {

struct NalaformerBlockOptions {
  int64_t width = 1;
  std::optional<int64_t> ffn_dim;
  std::optional<double> layerscale;
  double norm_eps = 1e-6, drop_path = 0;

  void describe(Fields& f) {
    f.add("width", width, "pixels of a row of the image").at_least(1);
    f.add("ffn_dim", ffn_dim, "hidden width of the channel mixer; none: 4 x the model width").at_least(1);
    f.add("layerscale", layerscale, "initial factor on each branch's channels; none: no such factors");
    f.add("norm_eps", norm_eps, "eps of the norms").greater_than(0);
    f.add("drop_path", drop_path, "part of the rows of a batch that skip a branch in training")
        .at_least(0)
        .less_than(1);
  }
};

/// fc2(u + conv(u)), u = gelu(fc1 x), conv a depthwise 3 x 3 over the image.
class GridMlp : public torch::nn::Module {
 public:
  GridMlp(int64_t width, int64_t hidden);
  /// x [B, T, D]; keep [B, T] bool or undefined.
  Tensor forward(const Tensor& x, const Tensor& keep, int64_t columns);

 private:
  Linear fc1_{nullptr}, fc2_{nullptr};
  std::shared_ptr<GridConv> dwconv_;
};

/// A layer of a vision stack (NaLaFormer, arXiv 2506.21137), with any mixer that is not causal as its attention:
///   x += cpe1(x);  x += gamma_1 attn(LN x);  x += cpe2(x);  x += gamma_2 ffn(LN x)
/// cpe are depthwise 3 x 3 convolutions, which tell tokens their places. x [B, T, D], T the pixels row by row.
class NalaformerBlock : public torch::nn::Module {
 public:
  NalaformerBlock(int64_t width, const NalaformerBlockOptions& options, std::shared_ptr<Mixer> attention);

  /// Throws UsageError for packed rows, which are no image.
  Tensor forward(const Tensor& x, Pass& pass);

 private:
  Tensor branch(const Tensor& y, const Tensor& scale);

  NalaformerBlockOptions options_;
  std::shared_ptr<Mixer> attention_;
  std::shared_ptr<Norm> norm1_, norm2_;
  std::shared_ptr<GridConv> cpe1_, cpe2_;
  std::shared_ptr<GridMlp> ffn_;
  Tensor gamma_1_, gamma_2_;  // [D] or undefined
};

}  // namespace seqloom
