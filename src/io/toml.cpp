#include "io/toml.h"

#include <toml++/toml.h>
#include <charconv>
#include <cmath>

#include "io/mapped_file.h"

namespace seqloom {
namespace {

constexpr size_t kMaxFile = size_t{10} << 20;
constexpr size_t kMaxListIndex = 10'000;

std::string place(const toml::node& node, const std::string& name) {
  return fmt::format("{}:{}:{}", name, node.source().begin.line, node.source().begin.column);
}

Config convert(const toml::node& node, const std::string& name) {
  if (const auto* table = node.as_table()) {
    Config result = Config::object();
    for (const auto& [key, value] : *table) result[std::string(key.str())] = convert(value, name);
    return result;
  }
  if (const auto* list = node.as_array()) {
    Config result = Config::array();
    for (const auto& value : *list) result.push_back(convert(value, name));
    return result;
  }
  if (const auto* text = node.as_string()) return text->get();
  if (const auto* number = node.as_integer()) return number->get();
  if (const auto* flag = node.as_boolean()) return flag->get();
  if (const auto* number = node.as_floating_point()) {
    if (!std::isfinite(number->get())) fail("{}: expected a finite number", place(node, name));
    return number->get();
  }
  fail("{}: dates and times have no use here; write text in quotes", place(node, name));
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
Config& descend(Config& at, const std::string& key, const std::string& assignment) {
  if (at.is_array()) {
    size_t index = 0;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), index);
    if (error != std::errc() || end != key.data() + key.size() || index >= std::min(at.size(), kMaxListIndex)) {
      misuse("--set {}: '{}' is not an element of a list of {}", assignment, key, at.size());
    }
    return at[index];
  }
  if (at.is_null()) at = Config::object();
  if (!at.is_object()) misuse("--set {}: '{}' is inside {}, which is not a table", assignment, key, at.dump());
  return at[key];
}

}  // namespace

Config parse_toml(std::string_view text, const std::string& name) {
  try {
    return convert(toml::parse(text), name);
  } catch (const toml::parse_error& error) {
    fail("{}:{}:{}: {}", name, error.source().begin.line, error.source().begin.column, error.description());
  }
}

Config load_toml(const std::string& path) {
  return parse_toml(read_file(path, kMaxFile), path);
}

void set_key(Config& config, const std::string& assignment) {
  const size_t equals = assignment.find('=');
  if (equals == std::string::npos || equals == 0)
    misuse("--set {}: expected key=value, like train.steps=100", assignment);
  const std::string path = assignment.substr(0, equals), text = assignment.substr(equals + 1);
  Config* at = &config;
  for (size_t begin = 0; begin <= path.size();) {
    const size_t dot = std::min(path.find('.', begin), path.size());
    const std::string key = path.substr(begin, dot - begin);
    if (key.empty()) misuse("--set {}: the key '{}' has an empty part", assignment, path);
    at = &descend(*at, key, assignment);
    begin = dot + 1;
  }
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
