#pragma once
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/fields.h"

namespace seqloom {

/// Tokens that are cut out of a text before it is split into words, like <|endoftext|>.
class AddedTokens {
 public:
  struct Match {
    size_t begin, size;
    int32_t id;
  };

  AddedTokens() = default;
  /// No content may be empty.
  explicit AddedTokens(std::vector<std::pair<std::string, int32_t>> tokens);

  /// The first place at or after `from` where a token stands; the longest token there.
  std::optional<Match> find(std::string_view text, size_t from) const;

  /// Appends the ids of the tokens in `text` to `ids`, calling plain(text) for what lies between them.
  template <typename Plain>
  void cut(std::string_view text, std::vector<int32_t>& ids, const Plain& plain) const {
    size_t done = 0;
    while (const auto match = find(text, done)) {
      if (match->begin > done) plain(text.substr(done, match->begin - done));
      ids.push_back(match->id);
      done = match->begin + match->size;
    }
    if (done < text.size()) plain(text.substr(done));
  }

 private:
  std::optional<Match> match(std::string_view text, size_t begin) const;

  std::vector<std::pair<std::string, int32_t>> tokens_;  // sorted by content
  std::bitset<256> first_bytes_;
};

struct AddedToken {
  std::string content;
  int32_t id;
  bool normalized;  // looked for in the normalised text
};

/// The list added_tokens of a tokenizer.json. Throws Error that begins with `name` for one that is malformed, asks for
/// what is not supported, or has another id in the model's vocabulary.
std::vector<AddedToken> read_tokens_added(const Config& root, const std::string& name);

/// The id of a token, from JSON.
int32_t token_id(const Config& value, const std::string& token, const std::string& name);

}  // namespace seqloom
