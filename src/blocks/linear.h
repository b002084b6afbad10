#pragma once

#include "base/torch.h"

namespace seqloom {

/// y = x W^T + b, x [..., in] -> y [..., out]; starts as torch::nn::Linear does, from the same draws. A projection that
/// is only applied is one of these.
class LinearImpl : public torch::nn::Module {
 public:
  LinearImpl(int64_t in, int64_t out, bool with_bias = true);

  torch::Tensor forward(const torch::Tensor& x);
  /// For one whose weight is read by others: it is never kept in another format.
  void keep_float() { keeps_float_ = true; }

  torch::Tensor weight;  // [out, in]
  torch::Tensor bias;    // [out] or undefined

 protected:
  /// An unset weight [out, in] without bias.
  LinearImpl(int64_t in, int64_t out, std::nullptr_t unset);

 private:
  bool keeps_float_ = false;
};
TORCH_MODULE(Linear);

/// A table of vectors [rows, width], N(0, 1) at first. As the linear layer that it is, it maps a vector to its products
/// with every row: the logits of a model whose output projection is its embedding.
class EmbeddingImpl : public LinearImpl {
 public:
  EmbeddingImpl(int64_t rows, int64_t width);

  /// ids [...] int64 -> [..., width].
  torch::Tensor rows(const torch::Tensor& ids) const;
};
TORCH_MODULE(Embedding);

/// While one lives, layers that this thread makes leave their matrices unset: they are about to be read from a file.
class WithoutInitialisation {
 public:
  WithoutInitialisation();
  ~WithoutInitialisation();
  WithoutInitialisation(const WithoutInitialisation&) = delete;
  WithoutInitialisation& operator=(const WithoutInitialisation&) = delete;

  static bool on();

 private:
  bool before_;
};

}  // namespace seqloom
