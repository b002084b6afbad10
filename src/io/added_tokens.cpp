#include "io/added_tokens.h"

#include <algorithm>

namespace seqloom {

AddedTokens::AddedTokens(std::vector<std::pair<std::string, int32_t>> tokens) : tokens_(std::move(tokens)) {
  std::sort(tokens_.begin(), tokens_.end());
  for (const auto& [content, id] : tokens_) first_bytes_.set(static_cast<unsigned char>(content.front()));
}

std::optional<AddedTokens::Match> AddedTokens::find(std::string_view text, size_t from) const {
  for (size_t at = from; at < text.size(); ++at) {
    if (!first_bytes_.test(static_cast<unsigned char>(text[at]))) continue;
    if (auto found = match(text, at)) return found;
  }
  return std::nullopt;
}

std::optional<AddedTokens::Match> AddedTokens::match(std::string_view text, size_t begin) const {
  // Among sorted tokens those that share the next byte are neighbours: narrow the range byte by byte.
  std::optional<Match> longest;
  auto low = tokens_.begin(), high = tokens_.end();
  for (size_t depth = 0; low != high; ++depth) {
    if (low->first.size() == depth) {
      longest = Match{begin, depth, low->second};
      ++low;
    }
    if (begin + depth == text.size()) break;
    const auto next = static_cast<unsigned char>(text[begin + depth]);
    const auto byte = [&](const auto& token) { return static_cast<unsigned char>(token.first[depth]); };
    low = std::partition_point(low, high, [&](const auto& token) { return byte(token) < next; });
    high = std::partition_point(low, high, [&](const auto& token) { return byte(token) == next; });
  }
  return longest;
}

}  // namespace seqloom
