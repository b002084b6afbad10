// value is test
#include <map>

#include "base/error.h"
#include "io/jinja/builtins.h"
#include "io/jinja/strings.h"

namespace seqloom::jinja {
namespace {

using Test = bool (*)(const Value& value, const Arguments& arguments, Budget& budget);

template <bool (Value::*property)() const>
bool has(const Value& value, const Arguments& arguments, Budget&) {
  bind_arguments(arguments, "the test", {});
  return (value.*property)();
}

bool is_defined(const Value& value, const Arguments&, Budget&) {
  return !value.is_undefined();
}
bool is_number(const Value& value, const Arguments&, Budget&) {
  return value.is_number();
}
bool is_iterable(const Value& value, const Arguments&, Budget&) {
  return value.is_string() || value.is_list() || value.is_dict() || value.is_undefined();
}
bool is_sequence(const Value& value, const Arguments&, Budget&) {
  return value.is_string() || value.is_list() || value.is_dict();
}
template <bool wanted>
bool is_truth(const Value& value, const Arguments&, Budget&) {
  return value.is_bool() && value.truth() == wanted;
}
template <int64_t rest>
bool has_parity(const Value& value, const Arguments&, Budget& budget) {
  return equal(apply_operator("%", value, int64_t{2}, budget), int64_t{rest}, budget);
}
bool is_divisible(const Value& value, const Arguments& arguments, Budget& budget) {
  const Value by = bind_arguments(arguments, "divisibleby", {"num"}, 1)[0];
  return equal(apply_operator("%", value, by, budget), int64_t{0}, budget);
}
bool is_lower(const Value& value, const Arguments&, Budget&) {
  return value.is_string() && lower(value.string()) == value.string() && upper(value.string()) != value.string();
}
bool is_upper(const Value& value, const Arguments&, Budget&) {
  return value.is_string() && upper(value.string()) == value.string() && lower(value.string()) != value.string();
}

bool equals(const Value& value, const Arguments& arguments, Budget& budget) {
  return equal(value, bind_arguments(arguments, "equalto", {"other"}, 1)[0], budget);
}
bool differs(const Value& value, const Arguments& arguments, Budget& budget) {
  return !equals(value, arguments, budget);
}
/// The same object: for what has no identity here, the same value of the same type.
bool same_as(const Value& value, const Arguments& arguments, Budget& budget) {
  const Value other = bind_arguments(arguments, "sameas", {"other"}, 1)[0];
  return value.type() == other.type() && equal(value, other, budget);
}
bool is_in(const Value& value, const Arguments& arguments, Budget& budget) {
  return contains(bind_arguments(arguments, "in", {"seq"}, 1)[0], value, budget);
}
template <int wanted, bool negated>
bool compares(const Value& value, const Arguments& arguments, Budget& budget) {
  return (compare(value, bind_arguments(arguments, "the test", {"other"}, 1)[0], budget) == wanted) != negated;
}

const std::map<std::string, Test, std::less<>>& tests() {
  static const std::map<std::string, Test, std::less<>> kTests = {
      {"defined", is_defined},
      {"undefined", has<&Value::is_undefined>},
      {"none", has<&Value::is_none>},
      {"string", has<&Value::is_string>},
      {"number", is_number},
      {"integer", has<&Value::is_integer>},
      {"float", has<&Value::is_float>},
      {"boolean", has<&Value::is_bool>},
      {"mapping", has<&Value::is_dict>},
      {"callable", has<&Value::is_callable>},
      {"iterable", is_iterable},
      {"sequence", is_sequence},
      {"true", is_truth<true>},
      {"false", is_truth<false>},
      {"odd", has_parity<1>},
      {"even", has_parity<0>},
      {"divisibleby", is_divisible},
      {"lower", is_lower},
      {"upper", is_upper},
      {"equalto", equals},
      {"eq", equals},
      {"ne", differs},
      {"sameas", same_as},
      {"in", is_in},
      {"lt", compares<-1, false>},
      {"lessthan", compares<-1, false>},
      {"gt", compares<1, false>},
      {"greaterthan", compares<1, false>},
      {"le", compares<1, true>},
      {"ge", compares<-1, true>},
  };
  return kTests;
}

}  // namespace

bool apply_test(const std::string& name, const Value& value, const Arguments& arguments, Budget& budget) {
  budget.spend(1);
  const auto found = tests().find(name);
  if (found == tests().end()) fail("there is no test '{}'", name);
  return found->second(value, arguments, budget);
}

}  // namespace seqloom::jinja
