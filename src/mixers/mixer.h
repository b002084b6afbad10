#pragma once

#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "base/fields.h"
#include "base/registry.h"
#include "base/torch.h"
#include "blocks/linear.h"
#include "memory/memory.h"
#include "mixers/layout.h"

namespace seqloom {

using torch::Tensor;

/// A linear-in-its-values mixer taken apart: y = finish(matrix @ values).
struct MatrixForm {
  Tensor matrix;                                // [B, H, T, T]
  Tensor values;                                // [B, H, T, V]
  std::function<Tensor(const Tensor&)> finish;  // [B, H, T, V] -> [B, T, D]
};

/// Mixes tokens along T: x [B, T, D] -> y [B, T, D]. The base of every token mixer.
class Mixer : public torch::nn::Module {
 public:
  explicit Mixer(int64_t width) : width_(width) {}

  int64_t width() const { return width_; }
  /// Whether y[:t] depends on x[:t] only. A CausalMixer that was configured bidirectional says no and cannot stream.
  virtual bool causal() const { return false; }

  /// The training form. Packed rows are handled here for mixers that do not take them as they are. Outputs of padding
  /// are unspecified. Throws UsageError for a wrong shape.
  Tensor forward(const Tensor& x, Pass& pass);
  Tensor forward(const Tensor& x);

  /// The mixing matrix view of dense rows, where the mixer has one.
  virtual std::optional<MatrixForm> matrix(const Tensor& x) { return std::nullopt; }

  /// The pass.values that it cannot do without, [B, T, D] each: what a layer before it hands on.
  virtual std::vector<std::string> takes() const { return {}; }

  /// Called by the trainer after each optimiser step: where what is learned without gradients moves, such as a codebook
  /// that follows its keys. It may use what the step's training forward passes left behind.
  virtual void after_step() {}

  /// Parameters that weight decay would harm, beyond those of one dimension (biases, norms), which never decay.
  virtual std::vector<Tensor> without_weight_decay() const { return {}; }

 protected:
  /// x [B, T, D], T >= 1, rows dense, padded or masked; packed only if `takes_packed`.
  virtual Tensor mix(const Tensor& x, Pass& pass) = 0;
  virtual bool takes_packed() const { return false; }

  void check_input(const Tensor& x) const;
  /// Options for state tensors: float32 (float64 in a float64 module), on the parameters' device.
  torch::TensorOptions state_options() const;

 private:
  int64_t width_;
};

/// A mixer that reads tokens from left to right and keeps a memory of them. Training, prefill and decoding are `extend`
/// with T = everything, T = a prompt, T = 1.
class CausalMixer : public Mixer {
 public:
  using Mixer::Mixer;
  bool causal() const override { return true; }

  virtual Memory empty_memory(int64_t batch) const = 0;
  /// Reads T >= 1 more tokens into `memory` and returns their outputs, x [B, T, D] -> y [B, T, D].
  Tensor extend(const Tensor& x, Memory& memory, Pass& pass);
  Tensor extend(const Tensor& x, Memory& memory);

  /// Reads one more token of each of S streams that know nothing of each other: x [S, D] -> y [S, D]. streams[i] is a
  /// memory of batch 1 at a position of its own and is changed in place. Neighbours may be one and the same memory,
  /// which then reads its tokens in their order. In `pass`, values and positions are [S, 1, ...]. What a stream gets
  /// does not depend, to the bit, on the others.
  Tensor step(const Tensor& x, at::ArrayRef<Memory*> streams, Pass& pass);
  /// How many tokens a memory can read at the most.
  virtual int64_t longest() const { return std::numeric_limits<int64_t>::max(); }

 protected:
  /// As `extend`; the memory's counts are those before x's first token and are advanced by the caller. A mixer that
  /// takes packed rows reads them into an empty memory, which has a row for each.
  virtual Tensor read(const Tensor& x, Memory& memory, Pass& pass) = 0;
  /// As `step`, without gradients, and advances the counts. By default stream by stream; a mixer overrides it to share
  /// the products of its projections among the streams.
  virtual Tensor read_each(const Tensor& x, at::ArrayRef<Memory*> streams, Pass& pass);
  Tensor mix(const Tensor& x, Pass& pass) override;
};

/// A causal mixer whose memory update is a monoid action (shared design, specs/00-state-algebra): what a run of tokens
/// does to any memory is a fixed thing, its summary; summaries combine associatively.
///
/// A mixer says how a run of tokens becomes an *element* of its monoid, how elements combine and act. What is common is
/// done here: where a token's element depends on the `reach` tokens before it (a short convolution feeds the scan), the
/// first tokens of a run cannot be summarised before their left neighbours are known. A summary therefore holds
///   head     the run's first min(T, reach) tokens as they came: x [B, n, D], and what an element takes from the pass
///   element  of the tokens after the head
///   tail     the context (convolution windows) behind the run's last token
/// and combine() turns the right one's head into an element as soon as the left one supplies the context.
class ScannableMixer : public CausalMixer {
 public:
  using CausalMixer::CausalMixer;

  Summary identity(int64_t batch) const;
  /// x [B, T, D], T >= 1, without padding. `pass` has the values that the mixer takes; and the positions [B, T] where
  /// it is `positioned`, else they are consecutive from wherever the run is appended. What a mixer hands on itself is
  /// handed on by reading.
  Summary summarize(const Tensor& x, const Pass& pass);
  Summary summarize(const Tensor& x);
  /// `left` is the earlier one.
  Summary combine(const Summary& left, const Summary& right);
  void apply(const Summary& summary, Memory& memory);

 protected:
  /// How many tokens back a token's element looks.
  virtual int64_t reach() const { return 0; }
  /// The tensors of the memory that hold that look back, e.g. {"conv"}.
  virtual std::vector<std::string> context() const { return {}; }

  /// Whether an element depends on where its tokens stand, so that no summary is made without pass.positions.
  virtual bool positioned() const { return false; }

  virtual Memory identity_element(int64_t batch) const = 0;
  /// The element of x [B, T, D], T >= 1; reads the context tensors of `memory` and advances them, touches nothing else.
  /// `pass` has the values that the mixer takes, and the positions where it is positioned.
  virtual Memory element(const Tensor& x, Memory& memory, Pass& pass) = 0;
  virtual Memory combine_elements(const Memory& left, const Memory& right) const = 0;
  /// The memory's counts are those before the element's first token; element.tokens is its number of tokens.
  virtual void apply_element(const Memory& element, Memory& memory) = 0;

 private:
  /// A run of tokens: x and, of the pass, what elements are made of.
  Memory run_of(const Tensor& x, const Pass& pass) const;
  Memory element_of(const Memory& run, Memory& memory);
  Memory counted_combine(const Memory& left, const Memory& right) const;
};

/// What the registry knows of a mixer: enough to build, document, test and benchmark it.
struct MixerEntry {
  std::string about;               // the idea in a line, with its source
  std::function<Fields()> fields;  // the options with their defaults; the values live as long as the program
  /// `where` names the table's place in messages, "recipe.toml: model.layers.0.mixer".
  std::function<std::shared_ptr<Mixer>(int64_t width, const Config& table, const std::string& where)> make;
  std::vector<std::string> trials;  // TOML option lines that tests and benchmarks run at small widths
  /// Options for a conformance case, from its config and the shapes of its parameters.
  std::function<Config(Config config, const std::map<std::string, std::vector<int64_t>>& shapes)> from_case;
};

Registry<MixerEntry>& mixers();

/// A mixer from `{ kind = "gla", heads = 4 }`.
std::shared_ptr<Mixer> make_mixer(int64_t width, const Config& table, const std::string& where);

/// The registry's view of class M, which has: `Options` with `describe(Fields&)`, `M(int64_t width, const Options&)`,
/// `about`; and where it wants them `trials` and `from_case`.
template <typename M>
MixerEntry describe_mixer() {
  using Options = typename M::Options;
  MixerEntry entry;
  entry.about = M::about;
  entry.fields = [] {
    static Options defaults;
    Fields fields;
    defaults.describe(fields);
    return fields;
  };
  entry.make = [](int64_t width, const Config& table, const std::string& where) -> std::shared_ptr<Mixer> {
    try {
      return std::make_shared<M>(width, read_options<Options>(table, where, {"kind"}));
    } catch (const UsageError& error) {
      const std::string message = error.what();  // a constructor does not know where its options stood
      throw UsageError(message.rfind(where, 0) == 0 ? message : where + ": " + message);
    }
  };
  if constexpr (requires { M::trials; }) entry.trials.assign(std::begin(M::trials), std::end(M::trials));
  if (entry.trials.empty()) entry.trials.emplace_back();
  if constexpr (requires { M::from_case; }) {
    entry.from_case = M::from_case;
  } else {
    entry.from_case = [](Config config, const std::map<std::string, std::vector<int64_t>>&) { return config; };
  }
  return entry;
}

#define SEQLOOM_REGISTER_MIXER(name, Class)               \
  [[maybe_unused]] static const bool registered_##Class = \
      ::seqloom::mixers().add(name, ::seqloom::describe_mixer<Class>())

}  // namespace seqloom
