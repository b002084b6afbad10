#pragma once
#include <cstddef>
#include <string>
#include <string_view>

namespace seqloom {

/// What stands at the start of a non-empty text: a whole character, one that the text's end cuts short, or `bytes`
/// bytes that are not UTF-8.
struct Utf8Step {
  enum class Kind { kWhole, kCut, kInvalid } kind;
  size_t bytes;
};

/// RFC 3629: no overlong forms, no surrogates, nothing above U+10FFFF.
Utf8Step utf8_step(std::string_view text);

/// How many bytes at the start of `text` are whole characters.
size_t utf8_prefix(std::string_view text);

/// The character that a whole one's bytes stand for.
char32_t utf8_character(std::string_view bytes);
void append_utf8(std::string& text, char32_t character);

inline bool is_utf8(std::string_view text) {
  return utf8_prefix(text) == text.size();
}

}  // namespace seqloom
