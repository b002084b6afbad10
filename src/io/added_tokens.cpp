#include "io/added_tokens.h"

#include <algorithm>
#include <unordered_set>

#include "base/error.h"
#include "io/json.h"

namespace seqloom {
namespace {

constexpr int64_t kMaxVocabulary = 1 << 22;
constexpr size_t kMaxContent = 256;  // bytes

}  // namespace

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

int32_t token_id(const Config& value, const std::string& token, const std::string& name) {
  if (!value.is_number_unsigned() || value >= kMaxVocabulary) {
    fail("{}: the id of '{}' is {}; expected 0..{}", name, printable(token), printable(value.dump()),
         kMaxVocabulary - 1);
  }
  return value.get<int32_t>();
}

std::vector<AddedToken> read_tokens_added(const Config& root, const std::string& name) {
  const Config& added = member(root, "added_tokens");
  if (added.is_null()) return {};
  if (!added.is_array()) fail("{}: added_tokens is not a list", name);
  std::unordered_set<std::string> seen;
  std::vector<AddedToken> tokens;
  for (const auto& token : added) {
    const std::string content = text_at(token, "content");
    if (content.empty() || content.size() > kMaxContent || !seen.insert(content).second) {
      fail("{}: the content of an added token is '{}'; expected a new one of 1..{} bytes", name, printable(content),
           kMaxContent);
    }
    for (const char* option : {"lstrip", "rstrip", "single_word"}) {
      if (!flag_at(token, option, false)) continue;
      fail("{}: added token '{}' asks for {}, which is not supported", name, printable(content), option);
    }
    const int32_t id = token_id(member(token, "id"), content, name);
    const Config& in_vocabulary = member(member(member(root, "model"), "vocab"), content);
    if (!in_vocabulary.is_null() && in_vocabulary != id) {
      fail("{}: added token '{}' has id {}, but {} in the vocabulary", name, printable(content), id,
           in_vocabulary.dump());
    }
    tokens.push_back({content, id, flag_at(token, "normalized", !flag_at(token, "special", false))});
  }
  return tokens;
}

}  // namespace seqloom
