#pragma once
#include "mixers/mixer.h"
#include "ops/attention.h"

namespace seqloom {

struct AarenOptions {
  int64_t heads = 4;
  bool bias = false;

  void describe(Fields& f) {
    f.add("heads", heads, "number of heads H; divides the width").at_least(1).also("num_heads");
    f.add("bias", bias, "biases in the projections");
  }
};

/// Aaren (Feng et al. 2024, arXiv 2405.13956): attention as a recurrent network. The query is one learned token, the
/// same at every place, so that the outputs for all prefixes come from one scan:
///   s_t = q . k_t / sqrt(d),  y_t = sum_{i <= t} softmax_i(s_1 .. s_t) v_i
/// Within a prefix the order of tokens does not matter: positions must come with the embedding.
/// Memory: m, u [B, H], w [B, H, d], the running softmax (m = -inf: nothing seen). Its element is the memory itself.
class Aaren final : public ScannableMixer {
 public:
  using Options = AarenOptions;
  static constexpr const char* about =
      "softmax attention of a learned query token over each prefix, as a scan (Feng et al. 2024)";
  static constexpr const char* trials[] = {"heads = 2", "heads = 3\nbias = true", "heads = 24"};

  Aaren(int64_t width, const Options& options);

  Memory empty_memory(int64_t batch) const override;
  std::optional<MatrixForm> matrix(const Tensor& x) override;

  static Config from_case(Config config, const std::map<std::string, std::vector<int64_t>>& shapes);

 protected:
  bool takes_packed() const override { return true; }
  Tensor read(const Tensor& x, Memory& memory, Pass& pass) override;
  Memory identity_element(int64_t batch) const override { return empty_memory(batch); }
  Memory element(const Tensor& x, Memory& memory, Pass& pass) override;
  Memory combine_elements(const Memory& left, const Memory& right) const override;
  void apply_element(const Memory& element, Memory& memory) override;

 private:
  Tensor scores(const Tensor& x);  // [B, T, D] -> [B, H, T], at least float32
  Tensor values(const Tensor& x);  // [B, T, D] -> [B, H, T, d]
  Tensor finish(const Tensor& o);  // [B, H, T, d] -> [B, T, D]

  int64_t heads_, head_width_;
  Tensor query_;
  Linear q_proj_{nullptr}, k_proj_{nullptr}, v_proj_{nullptr}, out_proj_{nullptr};
};

}  // namespace seqloom
