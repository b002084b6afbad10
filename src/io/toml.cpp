#include "io/toml.h"

#include <toml++/toml.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>

#include "io/json.h"
#include "io/mapped_file.h"
#include "io/utf8.h"

namespace seqloom {
namespace {

constexpr size_t kMaxFile = size_t{1} << 20;  // toml++ takes quadratic time for tables that are reopened
constexpr size_t kMaxKeyParts = 16;
constexpr int kMaxDepth = 64;

std::string place(const toml::source_position& position, const std::string& name) {
  return fmt::format("{}:{}:{}", name, position.line, position.column);
}

/// Where the string that begins at `at` ends: behind its closing quotes, or at the end of what cannot be a string.
size_t string_end(std::string_view text, size_t at) {
  const char quote = text[at];
  const bool long_form = text.substr(at, 3) == std::string(3, quote);
  for (at += long_form ? 3 : 1; at < text.size(); ++at) {
    if (text[at] == '\\' && quote == '"') {
      ++at;
    } else if (!long_form && (text[at] == quote || text[at] == '\n')) {
      return at + 1;
    } else if (long_form && text.substr(at, 3) == std::string(3, quote)) {
      return std::min(text.find_first_not_of(quote, at),
                      std::min(at + 5, text.size()));  // up to two belong to the text
    }
  }
  return text.size();
}

/// Refuses keys of very many parts, a.a.a.a...: toml++ bounds the nesting of values, but makes and destroys the tables
/// of such a key by unbounded recursion.
void check_keys(std::string_view text, const std::string& name) {
  size_t line = 1, dots = 0;
  for (size_t at = 0; at < text.size();) {
    const char c = text[at];
    size_t next = at + 1;
    if (c == '"' || c == '\'') {
      next = string_end(text, at);
    } else if (c == '#') {
      next = std::min(text.find('\n', at), text.size());
    } else if (c == '.') {
      if (++dots >= kMaxKeyParts) fail("{}:{}: a key of more than {} parts", name, line, kMaxKeyParts);
    } else if (std::isalnum(static_cast<unsigned char>(c)) == 0 &&
               std::string_view("-_ \t").find(c) == std::string::npos) {
      dots = 0;
    }
    line += static_cast<size_t>(std::count(text.begin() + at, text.begin() + next, '\n'));
    at = next;
  }
}

Config convert(const toml::node& node, const std::string& name, int depth = 0) {
  const std::string where = place(node.source().begin, name);
  if (depth > kMaxDepth) fail("{}: nested deeper than {} levels", where, kMaxDepth);
  if (const auto* table = node.as_table()) {
    Config result = Config::object();
    for (const auto& [key, value] : *table) result[std::string(key.str())] = convert(value, name, depth + 1);
    return result;
  }
  if (const auto* list = node.as_array()) {
    Config result = Config::array();
    for (const auto& value : *list) result.push_back(convert(value, name, depth + 1));
    return result;
  }
  if (const auto* text = node.as_string()) return text->get();
  if (const auto* number = node.as_integer()) return number->get();
  if (const auto* flag = node.as_boolean()) return flag->get();
  if (const auto* number = node.as_floating_point()) {
    if (!std::isfinite(number->get())) fail("{}: expected a finite number", where);
    return number->get();
  }
  fail("{}: dates and times have no use here; write text in quotes", where);
}

std::optional<Config> parse_value(const std::string& text) {
  try {
    const Config table = parse_toml("value = " + text + "\n", "value");
    // more than one key means that the text broke out of its value
    if (table.size() == 1) return table.at("value");
  } catch (const Error&) {
  }
  return std::nullopt;
}

/// The place that `key` names inside `at`, made where `at` is a table.
Config& descend(Config& at, const std::string& key, const std::string& shown) {
  if (at.is_array()) {
    size_t index = 0;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), index);
    if (error != std::errc() || end != key.data() + key.size() || index >= at.size()) {
      misuse("--set {}: '{}' is not an element of a list of {}; they are counted from 0", shown, key, at.size());
    }
    return at[index];
  }
  if (at.is_null()) at = Config::object();
  if (!at.is_object()) misuse("--set {}: '{}' is inside {}, which is not a table", shown, key, printable(at.dump()));
  return at[key];
}

std::vector<std::string> key_parts(const std::string& path, const std::string& shown) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin <= path.size();) {
    const size_t dot = std::min(path.find('.', begin), path.size());
    parts.push_back(path.substr(begin, dot - begin));
    if (parts.back().empty()) misuse("--set {}: the key '{}' has an empty part", shown, printable(path));
    if (parts.size() > kMaxKeyParts) misuse("--set {}: a key of more than {} parts", shown, kMaxKeyParts);
    begin = dot + 1;
  }
  return parts;
}

}  // namespace

Config parse_toml(std::string_view text, const std::string& name) {
  check_keys(text, name);
  try {
    return convert(toml::parse(text), name);
  } catch (const toml::parse_error& error) {
    fail("{}: {}", place(error.source().begin, name), printable(error.description(), 240));
  }
}

Config load_toml(const std::string& path) {
  return parse_toml(read_file(path, kMaxFile), path);
}

void set_key(Config& config, const std::string& assignment) {
  const std::string shown = printable(assignment);
  if (!is_utf8(assignment)) misuse("--set {}: is not UTF-8", shown);
  const size_t equals = assignment.find('=');
  if (equals == std::string::npos || equals == 0) misuse("--set {}: expected key=value, like train.steps=100", shown);
  const std::string text = assignment.substr(equals + 1);
  Config* at = &config;
  for (const auto& key : key_parts(assignment.substr(0, equals), shown)) at = &descend(*at, key, shown);
  *at = parse_value(text).value_or(Config(text));
}

Config merge(Config base, const Config& overrides) {
  if (!base.is_object() || !overrides.is_object()) return overrides;
  for (const auto& [key, value] : overrides.items()) {
    base[key] = base.contains(key) ? merge(base[key], value) : value;
  }
  return base;
}

}  // namespace seqloom
