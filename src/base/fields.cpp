#include "base/fields.h"

#include <algorithm>
#include <cmath>

#include <fmt/ranges.h>

#include "base/registry.h"

namespace seqloom {
namespace {

template <typename... Lambdas>
struct Overload : Lambdas... {
  using Lambdas::operator()...;
};
template <typename... Lambdas>
Overload(Lambdas...) -> Overload<Lambdas...>;

[[noreturn]] void wrong_type(const std::string& where, const Config& value, const std::string& expected) {
  std::string text = value.dump();
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  misuse("{} = {}: expected {}", where, text, expected);
}

int64_t to_integer(const Config& value, const std::string& where) {
  if (value.is_number_unsigned() && value.get<uint64_t>() > uint64_t(std::numeric_limits<int64_t>::max())) {
    wrong_type(where, value, "an integer of at most 63 bits");
  }
  if (!value.is_number_integer()) wrong_type(where, value, "an integer");
  return value.get<int64_t>();
}

double to_number(const Config& value, const std::string& where) {
  if (!value.is_number()) wrong_type(where, value, "a number");
  const double number = value.get<double>();
  if (!std::isfinite(number)) wrong_type(where, value, "a finite number");
  return number;
}

bool asks_for_none(const Config& value) {
  return value.is_null() || value == "none" || value == "auto";
}

}  // namespace

Field::Field(std::string name, Value value, std::string help)
    : name_(std::move(name)), help_(std::move(help)), value_(value) {}

Field& Field::at_least(double low) {
  low_ = low;
  low_open_ = false;
  return *this;
}

Field& Field::greater_than(double low) {
  low_ = low;
  low_open_ = true;
  return *this;
}

Field& Field::at_most(double high) {
  high_ = high;
  high_open_ = false;
  return *this;
}

Field& Field::less_than(double high) {
  high_ = high;
  high_open_ = true;
  return *this;
}

Field& Field::one_of(std::vector<std::string> words) {
  words_ = std::move(words);
  return *this;
}

Field& Field::also(std::string alias) {
  aliases_.push_back(std::move(alias));
  return *this;
}

bool Field::answers_to(const std::string& key) const {
  return key == name_ || std::find(aliases_.begin(), aliases_.end(), key) != aliases_.end();
}

std::string Field::type() const {
  return std::visit(
      Overload{[](bool*) { return "true or false"; }, [](int64_t*) { return "integer"; },
               [](double*) { return "number"; }, [](std::string*) { return "text"; },
               [](std::vector<double>*) { return "list of numbers"; }, [](Config*) { return "table or list"; },
               [](std::optional<int64_t>*) { return "integer or \"none\""; },
               [](std::optional<double>*) { return "number or \"none\""; }},
      value_);
}

std::string Field::range() const {
  if (!words_.empty()) return fmt::format("{}", fmt::join(words_, " | "));
  std::string text;
  if (std::isfinite(low_)) text = fmt::format("{} {:g}", low_open_ ? ">" : ">=", low_);
  if (std::isfinite(high_)) {
    text += fmt::format("{}{} {:g}", text.empty() ? "" : " and ", high_open_ ? "<" : "<=", high_);
  }
  return text;
}

Config Field::get() const {
  return std::visit(Overload{[](std::optional<int64_t>* v) { return *v ? Config(**v) : Config("none"); },
                             [](std::optional<double>* v) { return *v ? Config(**v) : Config("none"); },
                             [](auto* v) { return Config(*v); }},
                    value_);
}

void Field::check_number(double value, const std::string& where) const {
  const bool too_low = low_open_ ? value <= low_ : value < low_;
  const bool too_high = high_open_ ? value >= high_ : value > high_;
  if (too_low || too_high) misuse("{} = {:g}: expected a value {} ({})", where, value, range(), help_);
}

void Field::set(const Config& value, const std::string& where) const {
  std::visit(Overload{[&](bool* v) {
                        if (!value.is_boolean()) wrong_type(where, value, "true or false");
                        *v = value.get<bool>();
                      },
                      [&](int64_t* v) {
                        const int64_t number = to_integer(value, where);
                        check_number(static_cast<double>(number), where);
                        *v = number;
                      },
                      [&](double* v) {
                        const double number = to_number(value, where);
                        check_number(number, where);
                        *v = number;
                      },
                      [&](std::string* v) {
                        if (!value.is_string()) wrong_type(where, value, words_.empty() ? "text" : range());
                        auto word = value.get<std::string>();
                        if (!words_.empty() && std::find(words_.begin(), words_.end(), word) == words_.end()) {
                          misuse("{} = \"{}\": expected one of {}", where, word, fmt::join(words_, ", "));
                        }
                        *v = std::move(word);
                      },
                      [&](std::vector<double>* v) {
                        if (!value.is_array()) wrong_type(where, value, "a list of numbers");
                        std::vector<double> numbers;
                        for (const auto& item : value) {
                          numbers.push_back(to_number(item, where));
                          check_number(numbers.back(), where);
                        }
                        *v = std::move(numbers);
                      },
                      [&](Config* v) {
                        if (!value.is_object() && !value.is_array()) wrong_type(where, value, "a table or a list");
                        *v = value;
                      },
                      [&](std::optional<int64_t>* v) {
                        if (asks_for_none(value)) {
                          v->reset();
                          return;
                        }
                        const int64_t number = to_integer(value, where);
                        check_number(static_cast<double>(number), where);
                        *v = number;
                      },
                      [&](std::optional<double>* v) {
                        if (asks_for_none(value)) {
                          v->reset();
                          return;
                        }
                        const double number = to_number(value, where);
                        check_number(number, where);
                        *v = number;
                      }},
             value_);
}

const Field* Fields::find(const std::string& key) const {
  for (const auto& field : fields_) {
    if (field.answers_to(key)) return &field;
  }
  return nullptr;
}

void Fields::read(const Config& table, const std::string& where, const std::vector<std::string>& ignored) const {
  if (!table.is_object()) wrong_type(where, table, "a table");
  for (const auto& [key, value] : table.items()) {
    if (std::find(ignored.begin(), ignored.end(), key) != ignored.end()) continue;
    const Field* field = find(key);
    if (field == nullptr) {
      std::vector<std::string> names;
      for (const auto& known : fields_) names.push_back(known.name());
      for (const auto& known : ignored) names.push_back(known);
      const std::string near = nearest(key, names);
      misuse("{}.{}: there is no such key{}; the keys are: {}", where, key,
             near.empty() ? "" : ", did you mean '" + near + "'?", fmt::join(names, ", "));
    }
    field->set(value, where + "." + key);
  }
}

Config Fields::write() const {
  Config table = Config::object();
  for (const auto& field : fields_) table[field.name()] = field.get();
  return table;
}

std::string nearest(std::string_view word, const std::vector<std::string>& names) {
  std::string best;
  size_t best_distance = 1 + word.size() / 3;  // farther than this is not a slip of the finger
  for (const auto& name : names) {
    std::vector<size_t> row(name.size() + 1);
    for (size_t j = 0; j <= name.size(); ++j) row[j] = j;
    for (size_t i = 1; i <= word.size(); ++i) {
      size_t diagonal = row[0];
      row[0] = i;
      for (size_t j = 1; j <= name.size(); ++j) {
        const size_t above = row[j];
        row[j] = std::min({row[j] + 1, row[j - 1] + 1, diagonal + (word[i - 1] == name[j - 1] ? 0 : 1)});
        diagonal = above;
      }
    }
    if (row[name.size()] <= best_distance) {
      if (row[name.size()] < best_distance || best.empty()) best = name;
      best_distance = row[name.size()];
    }
  }
  return best;
}

}  // namespace seqloom
