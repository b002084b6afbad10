#pragma once
#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/fields.h"
#include "io/added_tokens.h"
#include "io/bpe_merges.h"
#include "io/regex_splitter.h"
#include "io/token_frame.h"
#include "io/tokenizer.h"

namespace seqloom {

/// Byte-level byte pair encoding as GPT-2 does it (Sennrich et al. 2016, arXiv 1508.07909; Radford et al. 2019), read
/// from a Hugging Face tokenizer.json: added tokens are cut out first, regular expressions split the rest into words,
/// each word's bytes are merged pair by pair in the order of the merges list.
class BpeTokenizer final : public Tokenizer {
 public:
  /// `root` is the file. Throws Error that begins with `name` when it is malformed or asks for something else than
  /// byte-level BPE.
  BpeTokenizer(const Config& root, const std::string& name, uint64_t fingerprint);

  std::vector<int32_t> encode(std::string_view text) const override;
  std::string token_bytes(int32_t id) const override;
  int64_t vocabulary() const override { return static_cast<int64_t>(bytes_.size()); }
  std::string kind() const override { return "bpe"; }
  uint64_t fingerprint() const override { return fingerprint_; }
  TokenFrame frame() const override { return frame_; }

 private:
  /// One pre-tokenizer, applied to each piece that the one before it made.
  struct Step {
    bool prefix_space = false;
    std::optional<RegexSplitter> splitter;
  };

  void check_kind(const Config& root) const;
  void read_vocabulary(const Config& model);
  void read_bytes(const Config& model);
  void read_merges(const Config& model);
  void read_added_tokens(const Config& root);
  void read_steps(const Config& root);
  Step read_step(const Config& step) const;
  void set_token(int32_t id, const std::string& bytes);
  void encode_plain(std::string_view text, size_t step, std::vector<int32_t>& ids) const;
  void encode_word(std::string_view word, std::vector<int32_t>& ids) const;

  std::string name_;  // for messages
  uint64_t fingerprint_;
  TokenFrame frame_;
  std::vector<std::string> bytes_;                // of each id; "" for ids that no token has
  std::unordered_map<std::string, int32_t> ids_;  // by the token's bytes
  BpeMerges merges_;
  AddedTokens raw_added_, normal_added_;                // looked for before and after normalisation
  std::array<std::vector<int32_t>, 256> byte_symbols_;  // what each byte starts as; empty where it has no token
  std::optional<int32_t> unknown_;                      // stands for bytes without a token
  std::vector<Step> steps_;
  bool nfc_ = false, ignore_merges_ = false, fuse_unknown_ = false;
};

}  // namespace seqloom
