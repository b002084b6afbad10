#include "io/nfc.h"

#include <algorithm>
#include <unordered_map>
#include <vector>

#include "io/nfc_table.h"
#include "io/utf8.h"

namespace seqloom {
namespace {

// Hangul syllables are composed by arithmetic (The Unicode Standard, section 3.12).
constexpr char32_t kSyllables = 0xac00, kLeads = 0x1100, kVowels = 0x1161, kTails = 0x11a7;
constexpr char32_t kLeadCount = 19, kVowelCount = 21, kTailCount = 28;
constexpr char32_t kSyllableCount = kLeadCount * kVowelCount * kTailCount;

/// A character and its canonical combining class; class 0 is a starter.
struct Mark {
  char32_t character;
  uint8_t order;
};

uint8_t combining_class(char32_t character) {
  const auto table = nfc_combining_classes();
  const auto after = std::upper_bound(table.begin(), table.end(), character,
                                      [](char32_t c, const CombiningClass& range) { return c < range.first; });
  if (after == table.begin()) return 0;
  const CombiningClass& range = *std::prev(after);
  return character <= range.last ? range.value : 0;
}

void decompose(char32_t character, std::vector<Mark>& out) {
  if (character >= kSyllables && character < kSyllables + kSyllableCount) {
    const char32_t index = character - kSyllables, tail = index % kTailCount;
    out.push_back({kLeads + index / kTailCount / kVowelCount, 0});
    out.push_back({kVowels + index / kTailCount % kVowelCount, 0});
    if (tail > 0) out.push_back({kTails + tail, 0});
    return;
  }
  const auto table = nfc_decompositions();
  const auto found = std::lower_bound(table.begin(), table.end(), character,
                                      [](const Decomposition& entry, char32_t c) { return entry.character < c; });
  if (found == table.end() || found->character != character) {
    out.push_back({character, combining_class(character)});
    return;
  }
  decompose(found->first, out);  // at most a few levels: the database has no cycles
  if (found->second != 0) decompose(found->second, out);
}

/// The character that two compose to, or 0.
char32_t composed(char32_t first, char32_t second) {
  if (first >= kLeads && first < kLeads + kLeadCount && second >= kVowels && second < kVowels + kVowelCount) {
    return kSyllables + ((first - kLeads) * kVowelCount + (second - kVowels)) * kTailCount;
  }
  if (first >= kSyllables && first < kSyllables + kSyllableCount && (first - kSyllables) % kTailCount == 0 &&
      second > kTails && second < kTails + kTailCount) {
    return first + (second - kTails);
  }
  static const auto pairs = [] {
    std::unordered_map<uint64_t, char32_t> map;
    for (const auto& entry : nfc_decompositions()) {
      if (entry.composes) map[uint64_t{entry.first} << 32 | entry.second] = entry.character;
    }
    return map;
  }();
  const auto found = pairs.find(uint64_t{first} << 32 | second);
  return found == pairs.end() ? 0 : found->second;
}

/// Puts runs of marks into canonical order; marks of one class keep theirs.
void reorder(std::vector<Mark>& text) {
  for (auto at = text.begin(); at != text.end();) {
    const auto run = std::find_if(at, text.end(), [](const Mark& mark) { return mark.order != 0; });
    at = std::find_if(run, text.end(), [](const Mark& mark) { return mark.order == 0; });
    std::stable_sort(run, at, [](const Mark& a, const Mark& b) { return a.order < b.order; });
  }
}

/// Joins each starter with the marks after it that nothing blocks, in place.
void compose(std::vector<Mark>& text) {
  size_t size = 0, starter = 0;
  bool has_starter = false;
  for (const Mark mark : text) {
    // what was kept since the starter blocks a mark of the same or a lower class
    const bool adjacent = size == starter + 1;
    const bool open = has_starter && (adjacent || (mark.order != 0 && text[size - 1].order < mark.order));
    const char32_t joined = open ? composed(text[starter].character, mark.character) : 0;
    if (joined != 0) {
      text[starter].character = joined;
      continue;
    }
    if (mark.order == 0) {
      starter = size;
      has_starter = true;
    }
    text[size++] = mark;
  }
  text.resize(size);
}

std::string normalized(std::string_view valid) {
  std::vector<Mark> marks;
  while (!valid.empty()) {
    const size_t bytes = utf8_step(valid).bytes;
    decompose(utf8_character(valid.substr(0, bytes)), marks);
    valid.remove_prefix(bytes);
  }
  reorder(marks);
  compose(marks);
  std::string result;
  for (const Mark& mark : marks) append_utf8(result, mark.character);
  return result;
}

}  // namespace

std::string to_nfc(std::string_view text) {
  // nothing below U+0300, whose first byte is 0xcc, changes or joins with its neighbour
  const auto plain = [](char c) { return static_cast<unsigned char>(c) < 0xcc; };
  if (std::all_of(text.begin(), text.end(), plain)) return std::string(text);
  std::string result;
  while (!text.empty()) {
    const size_t valid = utf8_prefix(text);
    result += normalized(text.substr(0, valid));
    text.remove_prefix(valid);
    if (text.empty()) break;
    const size_t invalid = utf8_step(text).bytes;
    result += text.substr(0, invalid);
    text.remove_prefix(invalid);
  }
  return result;
}

std::u32string to_nfd(std::u32string_view text) {
  std::vector<Mark> marks;
  for (const char32_t character : text) decompose(character, marks);
  reorder(marks);
  std::u32string result;
  for (const Mark& mark : marks) result += mark.character;
  return result;
}

}  // namespace seqloom
