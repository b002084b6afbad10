#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/fields.h"
#include "io/regex_splitter.h"
#include "io/tokenizer.h"

namespace seqloom {

/// Byte-level byte pair encoding as GPT-2 does it (Sennrich et al. 2016, arXiv 1508.07909; Radford et al. 2019), read
/// from a Hugging Face tokenizer.json: added tokens are cut out first, a regular expression splits the rest into words,
/// each word's bytes are merged pair by pair in the order of the merges list.
class BpeTokenizer final : public Tokenizer {
 public:
  /// Throws Error that begins with `name` when the file is malformed or asks for something else than byte-level BPE.
  BpeTokenizer(std::string_view json, const std::string& name);

  std::vector<int32_t> encode(std::string_view text) const override;
  std::string token_bytes(int32_t id) const override;
  int64_t vocabulary() const override { return static_cast<int64_t>(bytes_.size()); }
  std::string kind() const override { return "bpe"; }

 private:
  struct Merge {
    int32_t rank, result;
  };

  void read_vocabulary(const Config& model);
  void read_merges(const Config& model);
  void read_added_tokens(const Config& root);
  void read_splitters(const Config& root);
  void add_splitter(const Config& step);
  int32_t id_of(const Config& value, const std::string& what) const;
  void encode_plain(std::string_view text, std::vector<int32_t>& ids) const;
  void encode_word(std::string_view word, std::vector<int32_t>& ids) const;

  std::string name_;                // for messages
  std::vector<std::string> bytes_;  // of each id; "" for ids that no token has
  std::vector<bool> used_;
  std::unordered_map<std::string, int32_t> ids_;        // by the token's bytes
  std::unordered_map<uint64_t, Merge> merges_;          // by (left id, right id)
  std::vector<int32_t> byte_ids_;                       // of each single byte, -1 where it has no token
  std::vector<std::pair<std::string, int32_t>> added_;  // longest first
  std::vector<RegexSplitter> splitters_;
  bool add_prefix_space_ = false, ignore_merges_ = false;
};

}  // namespace seqloom
