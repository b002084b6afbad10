#pragma once
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "io/jinja/value.h"

namespace seqloom::jinja {

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
};

/// The arguments in the order of `names`, undefined where one is missing. Throws Error naming `what` for one too many
/// or unknown, and when one of the first `required` is missing.
std::vector<Value> bind_arguments(const Arguments& arguments, const std::string& what,
                                  const std::vector<std::string_view>& names, size_t required = 0);

/// value | name(arguments). Throws Error for an unknown filter.
Value apply_filter(const std::string& name, const Value& value, const Arguments& arguments, Budget& budget);
/// value is name(arguments).
bool apply_test(const std::string& name, const Value& value, const Arguments& arguments, Budget& budget);
/// a op b for + - * / // % ** ~.
Value apply_operator(const std::string& op, const Value& a, const Value& b, Budget& budget);

/// value.name: a method, else the entry of that name, else undefined. Throws Error when `value` is undefined itself.
/// Callables refer to `budget`.
Value attribute(const Value& value, const std::string& name, Budget& budget);
/// value[key]: the entry, else a method, else undefined.
Value subscript(const Value& value, const Value& key, Budget& budget);
/// value[begin:end:step]; undefined or None where a bound is left out.
Value slice(const Value& value, const Value& begin, const Value& end, const Value& step, Budget& budget);
/// The elements that a loop runs through: of a list, the keys of a dict, the characters of a text.
List elements(const Value& value, Budget& budget);

/// The method `name` of a text, a list or a dict, bound to it; undefined where there is none.
Value method(const Value& self, const std::string& name, Budget& budget);

/// What every template may call: range, dict, namespace, raise_exception, strftime_now.
std::vector<std::pair<std::string, Value>> globals(Budget& budget);

}  // namespace seqloom::jinja
