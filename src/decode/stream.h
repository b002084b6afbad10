#pragma once
#include <memory>
#include <string>
#include <vector>

#include "decode/sampler.h"
#include "models/decoder.h"

namespace seqloom {

/// A stream of tokens at rest: what the model remembers of it, the logits of what may come next, the tokens that the
/// repetition penalty looks back on. It can be read on, forked, saved and moved; any model and anybody may hold many.
struct Stream {
  Memory memory;
  Tensor logits;                // [V], undefined before the first token
  std::vector<int64_t> recent;  // the last kRecent tokens

  static constexpr size_t kRecent = 256;
  /// Prompts are read in pieces of so many tokens: what a piece takes beside the memory does not grow with the prompt.
  /// Sums in matrix products may be taken in another order for another piece, so that whoever wants bit-identical
  /// streams reads in pieces of one size.
  static constexpr int64_t kPiece = 256;

  int64_t tokens() const { return memory.tokens; }
  int64_t bytes() const;
  /// An independent stream that goes on from here.
  Stream fork() const;
  /// Appends to `recent` and drops what is older than kRecent.
  void note(torch::ArrayRef<int64_t> tokens);
};

Stream empty_stream(const Decoder& model);

/// What a stream of so many tokens holds at the most. Of a memory that grows it is taken that it gets one entry a
/// token; where it gets fewer, as in a window, this is too much.
int64_t bytes_for(const Decoder& model, int64_t tokens);

/// Reads tokens, a prompt of any length. Throws UsageError for a token outside the vocabulary.
void read(Decoder& model, Stream& stream, torch::ArrayRef<int64_t> tokens);

/// Draws the next token; the stream stays as it was. Throws UsageError when it has read nothing yet, Error when the
/// logits are not finite.
int64_t draw(const Stream& stream, const SamplerOptions& options);

/// Reads one more token in each of S streams: streams[i] reads tokens[i]. What a stream gets does not depend, to the
/// bit, on which others are read beside it.
void read_one(Decoder& model, torch::ArrayRef<Stream*> streams, torch::ArrayRef<int64_t> tokens);

/// Reads tokens one behind the other, in one step: the same, to the bit, as one by one. Returns the logits behind each,
/// [n, V].
Tensor read_in_order(Decoder& model, Stream& stream, torch::ArrayRef<int64_t> tokens);

/// A stream as a safetensors file. `model_id` names model and weights; load throws Error when the file is not a stream
/// of this model.
void save_stream(const std::string& path, const Stream& stream, const std::string& model_id);
Stream load_stream(const std::string& path, const Decoder& model, const std::string& model_id);

}  // namespace seqloom
