#pragma once
#include <string>
#include <string_view>

#include "base/fields.h"

namespace seqloom {

/// JSON from untrusted text: nesting of at most 64 levels, at most ten million values, no duplicate keys, valid UTF-8.
/// Throws Error that begins with `name` and says what is wrong and where.
Config parse_json(std::string_view text, const std::string& name);

/// The same with tables in the order of the text, of at most 512 keys each, since looking for one takes a walk.
nlohmann::ordered_json parse_ordered_json(std::string_view text, const std::string& name);

/// Lenient look-ups: the value at `key`, null where there is none or `table` is no table; a flag, a text or `otherwise`
/// where it is of another type.
const Config& member(const Config& table, const std::string& key);
bool flag_at(const Config& table, const std::string& key, bool otherwise);
std::string text_at(const Config& table, const std::string& key, const std::string& otherwise = "");

/// Untrusted text for a message: on one line, without control characters, valid UTF-8, cut after `limit` bytes.
std::string printable(std::string_view text, size_t limit = 80);

}  // namespace seqloom
