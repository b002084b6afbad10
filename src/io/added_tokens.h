#pragma once
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

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

 private:
  std::optional<Match> match(std::string_view text, size_t begin) const;

  std::vector<std::pair<std::string, int32_t>> tokens_;  // sorted by content
  std::bitset<256> first_bytes_;
};

}  // namespace seqloom
