#pragma once
#include <memory>
#include <string>
#include <vector>

#include "decode/stream.h"

namespace seqloom {

/// One stream through a language model.
class Session {
 public:
  /// `model_id` names model and weights; a state saved under another one is refused.
  Session(std::shared_ptr<Decoder> model, std::string model_id);

  /// Reads tokens (a prompt of any length, in pieces: memory does not grow with it beyond the model's own state).
  void read(const std::vector<int64_t>& tokens) { seqloom::read(*model_, stream_, tokens); }
  /// Draws the next token and reads it. Throws UsageError when nothing was read yet.
  int64_t next(const SamplerOptions& options);

  /// An independent stream that goes on from here.
  Session fork() const;
  void save(const std::string& path) const { save_stream(path, stream_, model_id_); }
  /// Throws Error when the file is not a state of this model.
  void load(const std::string& path) { stream_ = load_stream(path, *model_, model_id_); }

  int64_t tokens() const { return stream_.tokens(); }
  /// Bytes that this stream holds.
  int64_t bytes() const { return stream_.memory.bytes(); }
  const Tensor& logits() const { return stream_.logits; }  // [V], undefined before the first token
  Stream& stream() { return stream_; }

 private:
  std::shared_ptr<Decoder> model_;
  std::string model_id_;
  Stream stream_;
};

}  // namespace seqloom
