#pragma once
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "io/added_tokens.h"
#include "io/tokenizer.h"

namespace seqloom {

/// WordPiece as BERT has it (Schuster & Nakajima 2012; Devlin et al. 2018, arXiv 1810.04805), read from a Hugging Face
/// tokenizer.json: added tokens are cut out first; the text is cleaned, ideographs stand alone, accents and capitals
/// go; spaces and punctuation end words; a word is its longest known beginning, then the longest known continuations
/// ("##ing"), and unknown as a whole where these do not cover it.
class WordPieceTokenizer final : public Tokenizer {
 public:
  /// `root` is the file. Throws Error that begins with `name` when it is malformed or asks for something else.
  WordPieceTokenizer(const Config& root, const std::string& name, uint64_t fingerprint);

  std::vector<int32_t> encode(std::string_view text) const override;
  /// A word has a space before it, a continuation none.
  std::string token_bytes(int32_t id) const override;
  int64_t vocabulary() const override { return static_cast<int64_t>(tokens_.size()); }
  std::string kind() const override { return "wordpiece"; }
  uint64_t fingerprint() const override { return fingerprint_; }
  TokenFrame frame() const override { return frame_; }

 private:
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
  };

  void read_vocabulary(const Config& model);
  void read_normalizer(const Config& root);
  void read_added_tokens(const Config& root);
  void set_token(int32_t id, const std::string& token);
  std::u32string normalized(std::string_view text) const;
  void encode_normal(std::string_view text, std::vector<int32_t>& ids) const;
  void encode_word(std::u32string_view word, std::vector<int32_t>& ids) const;

  std::string name_;  // for messages
  uint64_t fingerprint_;
  TokenFrame frame_;
  std::vector<std::string> tokens_;  // of each id; "" for ids that no token has
  std::unordered_map<std::string, int32_t, Hash, std::equal_to<>> ids_;
  AddedTokens raw_added_, normal_added_;  // looked for before and after normalisation
  std::string prefix_;                    // of continuations
  int32_t unknown_ = 0;
  size_t longest_word_ = 100, longest_token_ = 0;  // characters; bytes
  bool ideographs_ = true, strip_ = true, lowercase_ = true;
};

}  // namespace seqloom
