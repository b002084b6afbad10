#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/token_frame.h"

namespace seqloom {

/// Text to token ids and back.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  /// The text's own tokens.
  virtual std::vector<int32_t> encode(std::string_view text) const = 0;
  /// What the tokenizer puts round a text on its own.
  virtual TokenFrame frame() const { return {}; }
  std::vector<int32_t> encode_framed(std::string_view text) const;
  /// The bytes that a token stands for; not always whole characters. Throws UsageError for an id out of range.
  virtual std::string token_bytes(int32_t id) const = 0;
  virtual int64_t vocabulary() const = 0;
  /// "bytes", "bpe" or "wordpiece".
  virtual std::string kind() const = 0;
  /// Differs between tokenizers that encode differently, for telling whether cached ids are stale.
  virtual uint64_t fingerprint() const = 0;

  std::string decode(std::span<const int32_t> ids) const;
};

/// "bytes", or the path of a Hugging Face tokenizer.json. Throws Error naming the file.
std::shared_ptr<Tokenizer> make_tokenizer(const std::string& spec);

/// A tokenizer from the text of a tokenizer.json; `name` stands for the file in messages.
std::shared_ptr<Tokenizer> parse_tokenizer(std::string_view json, const std::string& name);

/// Turns token bytes into whole UTF-8 characters, so that a terminal never sees half of one. Bytes that are not UTF-8
/// become U+FFFD.
class Utf8Stream {
 public:
  /// Takes bytes and returns the characters that are complete.
  std::string push(std::string_view bytes);
  /// What is left at the end: U+FFFD where a character was cut short.
  std::string finish();

 private:
  std::string held_;
};

}  // namespace seqloom
