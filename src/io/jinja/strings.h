#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace seqloom::jinja {

// Python's operations on text, by characters of UTF-8 text.

std::vector<std::string_view> characters(std::string_view text);
size_t character_count(std::string_view text);

std::string upper(std::string_view text);
std::string lower(std::string_view text);
/// The first character in upper case, the rest in lower.
std::string capitalized(std::string_view text);
/// Every run of letters capitalized.
std::string titled(std::string_view text);

bool is_space(std::string_view character);
bool is_letter(std::string_view character);

enum class Side { kBoth, kLeft, kRight };
/// Without white space at the ends.
std::string strip(std::string_view text, Side side);
/// Without characters of `set` at the ends.
std::string strip(std::string_view text, std::string_view set, Side side);

/// Parts between white space, as str.split() has them; at most `limit` cuts when limit >= 0.
std::vector<std::string> split_words(std::string_view text, int64_t limit);
/// Parts between `separator`, which is not empty. `from_right`: cuts are counted from the right.
std::vector<std::string> split(std::string_view text, std::string_view separator, int64_t limit, bool from_right);
std::vector<std::string> split_lines(std::string_view text);
std::string replaced(std::string_view text, std::string_view old, std::string_view fresh, int64_t limit);

}  // namespace seqloom::jinja
