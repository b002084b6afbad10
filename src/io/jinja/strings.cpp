#include "io/jinja/strings.h"

#include <locale.h>
#include <wctype.h>

#include <algorithm>
#include <utility>

#include "io/utf8.h"

namespace seqloom::jinja {
namespace {

/// Unicode's classes and simple case mappings, whatever the process's own locale is.
locale_t unicode() {
  static const locale_t locale = newlocale(LC_CTYPE_MASK, "C.UTF-8", nullptr);
  return locale;
}

wint_t code_of(std::string_view character) {
  const auto byte = [&](size_t i) { return static_cast<wint_t>(static_cast<unsigned char>(character[i])); };
  switch (character.size()) {
    case 2:
      return (byte(0) & 0x1f) << 6 | (byte(1) & 0x3f);
    case 3:
      return (byte(0) & 0x0f) << 12 | (byte(1) & 0x3f) << 6 | (byte(2) & 0x3f);
    case 4:
      return (byte(0) & 0x07) << 18 | (byte(1) & 0x3f) << 12 | (byte(2) & 0x3f) << 6 | (byte(3) & 0x3f);
    default:
      return byte(0);
  }
}

void append(std::string& text, wint_t code) {
  if (code < 0x80) {
    text += static_cast<char>(code);
    return;
  }
  const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
  constexpr unsigned kLead[] = {0, 0xc0, 0xe0, 0xf0};
  text += static_cast<char>(kLead[more] | code >> (6 * more));
  for (int i = more - 1; i >= 0; --i) text += static_cast<char>(0x80 | (code >> (6 * i) & 0x3f));
}

void append_upper(std::string& text, std::string_view character) {
  append(text, unicode() != nullptr ? towupper_l(code_of(character), unicode()) : towupper(code_of(character)));
}
void append_lower(std::string& text, std::string_view character) {
  append(text, unicode() != nullptr ? towlower_l(code_of(character), unicode()) : towlower(code_of(character)));
}

template <typename Belongs>
std::string stripped(std::string_view text, Side side, Belongs belongs) {
  const auto all = characters(text);
  size_t begin = 0, end = all.size();
  while (side != Side::kRight && begin < end && belongs(all[begin])) ++begin;
  while (side != Side::kLeft && begin < end && belongs(all[end - 1])) --end;
  if (begin == end) return "";
  return {all[begin].data(), all[end - 1].data() + all[end - 1].size()};
}

}  // namespace

std::vector<std::string_view> characters(std::string_view text) {
  std::vector<std::string_view> result;
  while (!text.empty()) {
    const size_t bytes = utf8_step(text).bytes;
    result.push_back(text.substr(0, bytes));
    text.remove_prefix(bytes);
  }
  return result;
}

size_t character_count(std::string_view text) {
  size_t count = 0;
  while (!text.empty()) {
    text.remove_prefix(utf8_step(text).bytes);
    ++count;
  }
  return count;
}

std::string upper(std::string_view text) {
  std::string result;
  for (const auto character : characters(text)) append_upper(result, character);
  return result;
}

std::string lower(std::string_view text) {
  std::string result;
  for (const auto character : characters(text)) append_lower(result, character);
  return result;
}

std::string capitalized(std::string_view text) {
  std::string result;
  for (const auto character : characters(text)) {
    result.empty() ? append_upper(result, character) : append_lower(result, character);
  }
  return result;
}

std::string titled(std::string_view text) {
  std::string result;
  bool inside = false;
  for (const auto character : characters(text)) {
    inside ? append_lower(result, character) : append_upper(result, character);
    inside = is_letter(character);
  }
  return result;
}

bool is_space(std::string_view character) {
  const wint_t code = code_of(character);
  if (code >= 0x1c && code <= 0x1f) return true;
  constexpr wint_t kSpaces[] = {0x20,   0x85,   0xa0,   0x1680, 0x2000, 0x2001, 0x2002, 0x2003, 0x2004, 0x2005,
                                0x2006, 0x2007, 0x2008, 0x2009, 0x200a, 0x2028, 0x2029, 0x202f, 0x205f, 0x3000};
  return (code >= 9 && code <= 13) || std::find(std::begin(kSpaces), std::end(kSpaces), code) != std::end(kSpaces);
}

bool is_letter(std::string_view character) {
  return unicode() != nullptr ? iswalpha_l(code_of(character), unicode()) != 0 : iswalpha(code_of(character)) != 0;
}

std::string strip(std::string_view text, Side side) {
  return stripped(text, side, is_space);
}

std::string strip(std::string_view text, std::string_view set, Side side) {
  const auto chosen = characters(set);
  return stripped(text, side, [&](std::string_view character) {
    return std::find(chosen.begin(), chosen.end(), character) != chosen.end();
  });
}

std::vector<std::string> split_words(std::string_view text, int64_t limit) {
  std::vector<std::string> parts;
  const auto all = characters(text);
  size_t i = 0;
  while (true) {
    while (i < all.size() && is_space(all[i])) ++i;
    if (i == all.size()) return parts;
    if (limit >= 0 && static_cast<int64_t>(parts.size()) == limit) {
      parts.push_back(strip({all[i].data(), text.data() + text.size()}, Side::kRight));
      return parts;
    }
    std::string word;
    for (; i < all.size() && !is_space(all[i]); ++i) word += all[i];
    parts.push_back(std::move(word));
  }
}

std::vector<std::string> split(std::string_view text, std::string_view separator, int64_t limit, bool from_right) {
  std::vector<std::string> parts;
  const auto more = [&] { return limit < 0 || static_cast<int64_t>(parts.size()) < limit; };
  if (from_right) {
    for (size_t at = text.rfind(separator); at != std::string_view::npos && more(); at = text.rfind(separator)) {
      parts.emplace_back(text.substr(at + separator.size()));
      text = text.substr(0, at);
    }
  } else {
    for (size_t at = text.find(separator); at != std::string_view::npos && more(); at = text.find(separator)) {
      parts.emplace_back(text.substr(0, at));
      text.remove_prefix(at + separator.size());
    }
  }
  parts.emplace_back(text);
  if (from_right) std::reverse(parts.begin(), parts.end());
  return parts;
}

std::vector<std::string> split_lines(std::string_view text) {
  std::vector<std::string> lines;
  std::string line;
  bool open = false;
  const auto all = characters(text);
  for (size_t i = 0; i < all.size(); ++i) {
    const wint_t code = code_of(all[i]);
    const bool ends = (code >= 10 && code <= 13) || (code >= 0x1c && code <= 0x1e) || code == 0x85 || code == 0x2028 ||
                      code == 0x2029;
    if (code == '\r' && i + 1 < all.size() && all[i + 1] == "\n") ++i;
    if (ends)
      lines.push_back(std::exchange(line, ""));
    else
      line += all[i];
    open = !ends;
  }
  if (open) lines.push_back(std::move(line));
  return lines;
}

std::string replaced(std::string_view text, std::string_view old, std::string_view fresh, int64_t limit) {
  std::string result;
  if (old.empty()) {  // between all characters
    for (const auto character : characters(text)) {
      if (limit != 0) result += fresh;
      if (limit > 0) --limit;
      result += character;
    }
    if (limit != 0) result += fresh;
    return result;
  }
  for (size_t at = text.find(old); at != std::string_view::npos && limit != 0; at = text.find(old)) {
    result += text.substr(0, at);
    result += fresh;
    text.remove_prefix(at + old.size());
    if (limit > 0) --limit;
  }
  result += text;
  return result;
}

}  // namespace seqloom::jinja
