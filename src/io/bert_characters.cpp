#include "io/bert_characters.h"

#include <algorithm>
#include <unordered_map>

namespace seqloom {

BertCharacter bert_character(char32_t character) {
  const auto table = bert_ranges();
  const auto after = std::upper_bound(table.begin(), table.end(), character,
                                      [](char32_t c, const BertRange& range) { return c < range.first; });
  if (after == table.begin() || character > std::prev(after)->last) return BertCharacter::kOther;
  return std::prev(after)->kind;
}

char32_t lowered(char32_t character) {
  static const auto letters = [] {
    std::unordered_map<char32_t, char32_t> map;
    for (const auto& run : lower_runs()) {
      for (char32_t c = run.first; c <= run.last; c += run.step) {
        map[c] = static_cast<char32_t>(static_cast<int32_t>(c) + run.move);
      }
    }
    return map;
  }();
  const auto found = letters.find(character);
  return found == letters.end() ? character : found->second;
}

}  // namespace seqloom
