#pragma once

#include <memory>
#include <string>
#include <vector>

#include "blocks/norm.h"
#include "mixers/columns.h"
#include "mixers/mixer.h"

namespace seqloom {

struct PrefixAttentionOptions {
  int64_t heads = 4;
  std::string position = "none";
  double rope_base = 10000;

  void describe(Fields& f);
};

/// Softmax attention in which a token sees the last `window` tokens, its own included, and always a prefix of N tokens,
/// which Attention's window would leave behind. The sequence is the prefix, then the tokens: rope turns them by 0 ..
/// N-1 and N, N+1, ...
///
/// Memory: k, v [B, window-1, H, d] of the last tokens, real ones only, in time order; prefix_k, prefix_v [B, N, H, d].
class PrefixAttention : public torch::nn::Module {
 public:
  PrefixAttention(int64_t width, const PrefixAttentionOptions& options, int64_t window);

  /// Before the prefix, of `prefix` tokens.
  Memory empty_memory(int64_t batch, int64_t prefix, const torch::TensorOptions& options) const;
  /// The chosen rows [B] bool read the prefix [B, N, D], before any token.
  void begin(const Tensor& prefix, const Tensor& rows, Memory& memory);
  /// x [B, C, D] of `columns`, which have no chunks, at `positions` [B, C] behind the prefix; `known` [B] int64: how
  /// many tokens of the memory are seen at most.
  Tensor extend(const Tensor& x, const Tensor& positions, const Tensor& known, const Columns& columns, Memory& memory);

 private:
  Tensor heads_of(Linear& projection, const Tensor& x) const;  // [B, C, H, d]
  Tensor turned(const Tensor& heads, const Tensor& positions) const;
  /// q [B, C, H, d], k and v [B, n + C, H, d] -> [B, C, H, d].
  Tensor attend(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& known, const Memory& memory) const;

  int64_t heads_, head_width_, window_;
  Linear q_proj_{nullptr}, k_proj_{nullptr}, v_proj_{nullptr}, o_proj_{nullptr};
  Tensor frequencies_;  // of rope, [d/2] float64
};

struct TitansLayerOptions {
  Config memory = {{"kind", "titans"}}, attention = Config::object();
  int64_t persistent = 4;

  void describe(Fields& f);
};

/// What the three Titans layers (Behrouz et al. 2025, arXiv 2501.00663, sec. 4) have in common: a long-term memory M,
/// any causal mixer; attention over what is near; P, N learned persistent tokens before the sequence.
///
/// Memory: child "memory" of M; child "attention" of PrefixAttention. A row that has read nothing reads P before its
/// first token.
class TitansLayer : public CausalMixer {
 public:
  Memory empty_memory(int64_t batch) const override;
  void after_step() override { inner_->after_step(); }
  std::vector<Tensor> without_weight_decay() const override;

 protected:
  TitansLayer(int64_t width, const TitansLayerOptions& options, const PrefixAttentionOptions& attention,
              int64_t window);

  Tensor persistent(int64_t batch) const { return persistent_.unsqueeze(0).expand({batch, -1, -1}); }
  /// M(P), read in the given rows [B] bool; what it is in the others, nobody knows.
  Tensor recall_persistent(const Tensor& rows, Memory& memory) const;
  /// M(x), where M has read P already.
  Tensor recall(const Tensor& x, Memory& memory, Pass& pass) const;
  /// Attention of x [B, T, D] over P and the last tokens; padding is passed over.
  Tensor attend(const Tensor& x, Memory& memory, const Pass& pass) const;

  std::shared_ptr<CausalMixer> inner_;
  std::shared_ptr<PrefixAttention> attention_;
  Tensor persistent_;  // [N, D]
};

/// Memory as a gate: attention and memory read the same tokens side by side,
///   o = attention([P, x]) * sigmoid(RMSNorm(M([P, x]))).
class TitansMag final : public TitansLayer {
 public:
  using Options = TitansLayerOptions;
  static constexpr const char* about =
      "sliding-window attention, gated by a memory that is trained while it reads (Titans MAG, Behrouz et al. 2025)";
  static constexpr const char* trials[] = {
      "memory = { kind = 'titans', heads = 2, chunk = 8 }\nattention = { heads = 2, window = 5, position = 'rope' }",
      "memory = { kind = 'atlas', heads = 2, chunk = 4, window = 3 }\nattention = { heads = 3, window = 1 }\n"
      "persistent = 1",
      "memory = { kind = 'attention', heads = 2, position = 'rope' }\nattention = { heads = 4, window = 20 }\n"
      "persistent = 2"};

  TitansMag(int64_t width, const Options& options);

 protected:
  Tensor read(const Tensor& x, Memory& memory, Pass& pass) override;

 private:
  std::shared_ptr<RmsNorm> norm_;
};

/// Memory as a layer: attention reads what the memory answers, y = M([P, x]), o = attention(y); the answers to P stay
/// visible to all.
class TitansMal final : public TitansLayer {
 public:
  using Options = TitansLayerOptions;
  static constexpr const char* about =
      "a memory that is trained while it reads, then sliding-window attention over its answers (Titans MAL, Behrouz et "
      "al. 2025)";
  static constexpr const char* trials[] = {
      "memory = { kind = 'titans', heads = 2, chunk = 8 }\nattention = { heads = 2, window = 5, position = 'rope', "
      "rope_base = 100 }",
      "memory = { kind = 'atlas', heads = 2, chunk = 4, window = 3 }\nattention = { heads = 3, window = 18 }\n"
      "persistent = 2",
      "memory = { kind = 'gla', heads = 2 }\nattention = { heads = 2, window = 2 }\npersistent = 1"};

  TitansMal(int64_t width, const Options& options);

 protected:
  Tensor read(const Tensor& x, Memory& memory, Pass& pass) override;
};

struct TitansMacOptions : TitansLayerOptions {
  int64_t segment = 64;

  void describe(Fields& f) {
    TitansLayerOptions::describe(f);
    f.add("segment", segment, "tokens of a segment, which see each other").at_least(1).at_most(1 << 20);
  }
};

/// Memory as context: the tokens of a segment attend to what the memory knew before it, and what comes out is written.
/// With M the memory before a segment and x_1 .. x_c its tokens,
///   h_t = a copy of M, thrown away at the segment's end, answers x_t
///   y_t = attention of x_t over [P, h_1, x_1, .., h_t, x_t]
///   o_t = y_t * M(y_t),   written and then read
/// which departs from the paper twice. Its [P, h, x] lets a token see h of later ones, so it can neither stream nor be
/// trained causally; here h_t stands before x_t, at the same position for rope. And a mixer cannot be read without
/// writing: the copy reads the segment's tokens, so h_t is what M would say having gone on with x_1 .. x_t.
///
/// Memory, besides: child "copy". The attention's window is 2 segment keys, of which it sees those of the open segment.
class TitansMac final : public TitansLayer {
 public:
  using Options = TitansMacOptions;
  static constexpr const char* about =
      "attention within segments, which also sees what a memory that is trained while it reads says of their tokens "
      "(Titans MAC, Behrouz et al. 2025)";
  static constexpr const char* trials[] = {
      "memory = { kind = 'titans', heads = 2, chunk = 8 }\nattention = { heads = 2, position = 'rope' }\nsegment = 6",
      "memory = { kind = 'atlas', heads = 2, chunk = 4, window = 3 }\nattention = { heads = 3 }\npersistent = 1\n"
      "segment = 1",
      "memory = { kind = 'gla', heads = 2 }\nattention = { heads = 2 }\npersistent = 2\nsegment = 50"};

  TitansMac(int64_t width, const Options& options);
  Memory empty_memory(int64_t batch) const override;

 protected:
  Tensor read(const Tensor& x, Memory& memory, Pass& pass) override;

 private:
  /// Tokens of one segment.
  struct Stretch {
    Tensor x, real;    // [B, n, D]; [B, n] bool or undefined
    Tensor positions;  // [B, n] in the sequence
    Tensor before;     // [B] tokens of the segment before them
    bool begins;
  };

  void renew_copy(const Stretch& s, Memory& memory) const;
  /// M(x) of a stretch, M the child called `name`.
  Tensor recall_stretch(const char* name, const Tensor& x, const Stretch& s, Memory& memory, Pass& pass) const;
  Tensor attend_with_memory(const Stretch& s, const Tensor& h, Memory& memory) const;
  Tensor read_stretch(const Stretch& s, Memory& memory, Pass& pass) const;

  int64_t segment_;
};

}  // namespace seqloom
