#pragma once
#include <memory>
#include <string>
#include <vector>

#include "decode/sampler.h"
#include "models/decoder.h"

namespace seqloom {

/// One stream through a language model: a memory, and the logits of what may come next.
class Session {
 public:
  /// `model_id` names model and weights; a state saved under another one is refused.
  Session(std::shared_ptr<Decoder> model, std::string model_id);

  /// Reads tokens (a prompt of any length, in chunks: memory does not grow with it beyond the model's own state).
  void read(const std::vector<int64_t>& tokens);
  /// Draws the next token and reads it. Throws UsageError when nothing was read yet.
  int64_t next(const SamplerOptions& options);

  /// An independent stream that goes on from here.
  Session fork() const;
  void save(const std::string& path) const;
  /// Throws Error when the file is not a state of this model.
  void load(const std::string& path);

  int64_t tokens() const { return memory_.tokens; }
  /// Bytes that this stream holds.
  int64_t bytes() const { return memory_.bytes(); }
  const Tensor& logits() const { return logits_; }  // [V], undefined before the first token

 private:
  static constexpr int64_t kChunk = 512;  // tokens read at once
  static constexpr size_t kRecent = 256;  // tokens that the repetition penalty looks back on

  std::shared_ptr<Decoder> model_;
  std::string model_id_;
  Memory memory_;
  Tensor logits_;
  std::vector<int64_t> recent_;
};

}  // namespace seqloom
