#pragma once

#include <string>

#include "base/fields.h"
#include "base/torch.h"

namespace seqloom {

/// In what the matrices of a model are kept that is used and not trained. What flows through it stays float32.
struct WeightFormat {
  std::string type = "float32";
  int64_t group = 0;

  void describe(Fields& f) {
    f.add("type", type, "of a matrix's entries").one_of({"float32", "bfloat16", "int8"});
    f.add("group", group, "int8: columns that share a scale, in matrices whose width they divide; 0: a row has one")
        .at_least(0)
        .at_most(1 << 16);
  }
  bool operator==(const WeightFormat&) const = default;
};

/// y = x W^T + b, x [..., in] -> y [..., out]; starts as torch::nn::Linear does, from the same draws. A projection that
/// is only applied is one of these.
class LinearImpl : public torch::nn::Module {
 public:
  LinearImpl(int64_t in, int64_t out, bool with_bias = true);

  torch::Tensor forward(const torch::Tensor& x);
  /// For one whose weight is read by others: it is never kept in another format.
  void keep_float() { keeps_float_ = true; }
  bool keeps_float() const { return keeps_float_; }

  /// From now on the weight is kept in this format and takes no gradient. Returns how far it moved, |W' - W| / |W| of
  /// Frobenius norms. Throws Error where int8 is asked for and an entry is not finite.
  double store_as(const WeightFormat& format);
  /// The same, with a weight [out, in] of float32, bfloat16, or int8 with its scale [out, groups], taken as it is.
  void take(const torch::Tensor& kept, const torch::Tensor& its_scale);

  torch::Tensor weight;  // [out, in]
  torch::Tensor bias;    // [out] or undefined
  torch::Tensor scale;   // [out, groups] beside int8 (ops/linear.h), else undefined

 protected:
  /// An unset weight [out, in] without bias.
  LinearImpl(int64_t in, int64_t out, std::nullptr_t unset);

  bool taken_ = false;  // in whatever format: what flows is float32

 private:
  bool keeps_float_ = false;
};
TORCH_MODULE(Linear);

/// A table of vectors [rows, width], N(0, 1) at first. As the linear layer that it is, it maps a vector to its products
/// with every row: the logits of a model whose output projection is its embedding.
class EmbeddingImpl : public LinearImpl {
 public:
  EmbeddingImpl(int64_t rows, int64_t width);

  /// ids [...] int64 -> [..., width], float32 where the table is kept in less.
  torch::Tensor rows(const torch::Tensor& ids) const;
};
TORCH_MODULE(Embedding);

/// LinearImpl::store_as for every linear layer and embedding of a model; returns the greatest move of a matrix.
double store_as(torch::nn::Module& model, const WeightFormat& format);

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
