#pragma once
#include <cstdint>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "base/error.h"

namespace seqloom {

/// A configuration tree: what a TOML recipe or a checkpoint's metadata holds.
using Config = nlohmann::json;

/// One option that describes itself: name, default, meaning, range. Refers to the member it was made from.
class Field {
 public:
  using Value = std::variant<bool*, int64_t*, double*, std::string*, std::vector<double>*, Config*,
                             std::optional<int64_t>*, std::optional<double>*>;

  Field(std::string name, Value value, std::string help);

  Field& at_least(double low);
  Field& greater_than(double low);
  Field& at_most(double high);
  Field& less_than(double high);
  /// The value is one of these words.
  Field& one_of(std::vector<std::string> words);
  /// A second name that is read as well, e.g. "num_heads" for "heads".
  Field& also(std::string alias);

  const std::string& name() const { return name_; }
  const std::string& help() const { return help_; }
  bool answers_to(const std::string& key) const;
  std::string type() const;   // "integer", "number", "text", ...
  std::string range() const;  // "> 0", "none | rope", or ""
  Config get() const;
  /// Throws UsageError naming `where` (file and key path), the value and what was expected.
  void set(const Config& value, const std::string& where) const;

 private:
  void check_number(double value, const std::string& where) const;

  std::string name_, help_;
  Value value_;
  double low_ = -std::numeric_limits<double>::infinity(), high_ = std::numeric_limits<double>::infinity();
  bool low_open_ = false, high_open_ = false;
  std::vector<std::string> words_, aliases_;
};

/// The options of one thing, collected by its `describe(Fields&)`.
class Fields {
 public:
  template <typename T>
  Field& add(std::string name, T& member, std::string help) {
    fields_.emplace_back(std::move(name), Field::Value(&member), std::move(help));
    return fields_.back();
  }

  const std::vector<Field>& list() const { return fields_; }
  const Field* find(const std::string& key) const;

  /// Sets the members from the keys of a table. Unknown keys, wrong types and values out of range are UsageErrors that
  /// begin with `where`. Keys in `ignored` are somebody else's.
  void read(const Config& table, const std::string& where, const std::vector<std::string>& ignored = {}) const;
  /// All fields with their present values.
  Config write() const;

 private:
  std::vector<Field> fields_;
};

/// Options from a table, defaults where a key is absent.
template <typename Options>
Options read_options(const Config& table, const std::string& where, const std::vector<std::string>& ignored = {}) {
  Options options;
  Fields fields;
  options.describe(fields);
  fields.read(table, where, ignored);
  return options;
}

template <typename Options>
Config write_options(Options options) {
  Fields fields;
  options.describe(fields);
  return fields.write();
}

}  // namespace seqloom
