// Arithmetic, subscripts and slices, by Python's rules.
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "io/jinja/builtins.h"
#include "io/jinja/strings.h"

namespace seqloom::jinja {
namespace {

[[noreturn]] void overflow(const std::string& op) {
  fail("'{}': the result is too large", op);
}

/// Rounds toward minus infinity.
int64_t floor_divided(int64_t a, int64_t b) {
  const int64_t quotient = a / b;
  return quotient - (a % b != 0 && (a < 0) != (b < 0) ? 1 : 0);
}

Value integer_power(int64_t base, int64_t exponent, Budget& budget) {
  if (exponent < 0) return std::pow(static_cast<double>(base), static_cast<double>(exponent));
  int64_t result = 1;
  for (int64_t i = 0; i < exponent; ++i) {
    budget.spend(1);
    if (__builtin_mul_overflow(result, base, &result)) overflow("**");
  }
  return result;
}

Value of_integers(const std::string& op, int64_t a, int64_t b, Budget& budget) {
  int64_t result = 0;
  if (op == "+" && __builtin_add_overflow(a, b, &result)) overflow(op);
  if (op == "-" && __builtin_sub_overflow(a, b, &result)) overflow(op);
  if (op == "*" && __builtin_mul_overflow(a, b, &result)) overflow(op);
  if (op == "+" || op == "-" || op == "*") return result;
  if (op == "**") return integer_power(a, b, budget);
  if (b == 0) fail("'{}': division by zero", op);
  if (op == "/") return static_cast<double>(a) / static_cast<double>(b);
  if (b == -1) return of_integers("*", op == "%" ? 0 : a, -1, budget);  // the smallest integer has no positive
  return op == "//" ? floor_divided(a, b) : a - floor_divided(a, b) * b;
}

Value of_floats(const std::string& op, double a, double b) {
  if (op == "+") return a + b;
  if (op == "-") return a - b;
  if (op == "*") return a * b;
  if (op == "**") return std::pow(a, b);
  if (b == 0) fail("'{}': division by zero", op);
  if (op == "/") return a / b;
  if (op == "//") return std::floor(a / b);
  const double rest = std::fmod(a, b);
  return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}

/// "ab" * 3, [0] * 3.
Value repeated(const Value& value, int64_t times, Budget& budget) {
  const auto count = static_cast<size_t>(std::max<int64_t>(0, times));
  const size_t size = 1 + (value.is_string() ? value.string().size() : value.list().size());
  if (count > (size_t{1} << 40) / size) overflow("*");
  budget.spend(count * size);
  if (value.is_list()) {
    List list;
    for (size_t i = 0; i < count; ++i) list.insert(list.end(), value.list().begin(), value.list().end());
    return list;
  }
  std::string text;
  for (size_t i = 0; i < count; ++i) text += value.string();
  return text;
}

Value sum(const Value& a, const Value& b, Budget& budget) {
  if (a.is_string() && b.is_string()) {
    budget.spend(a.string().size() + b.string().size());
    return a.string() + b.string();
  }
  if (!a.is_list() || !b.is_list()) fail("'+' cannot join {} and {}", a.type(), b.type());
  budget.spend(a.list().size() + b.list().size());
  List list = a.list();
  list.insert(list.end(), b.list().begin(), b.list().end());
  return list;
}

/// Python's bounds of a slice of `size` elements.
struct Range {
  int64_t begin, end, step;
};
Range range_of(const Value& begin, const Value& end, const Value& step, int64_t size) {
  const auto given = [](const Value& value) { return !value.is_undefined() && !value.is_none(); };
  Range range{};
  range.step = given(step) ? step.integer("a slice's step") : 1;
  if (range.step == 0) fail("a slice's step must not be 0");
  const bool back = range.step < 0;
  const int64_t low = back ? -1 : 0, high = back ? size - 1 : size;
  const auto bound = [&](const Value& value, int64_t otherwise) {
    if (!given(value)) return otherwise;
    const int64_t place = value.integer("a slice's bound");
    return std::clamp(place < 0 ? place + size : place, low, high);
  };
  range.begin = bound(begin, back ? high : low);
  range.end = bound(end, back ? low : high);
  return range;
}

}  // namespace

Value apply_operator(const std::string& op, const Value& a, const Value& b, Budget& budget) {
  budget.spend(1);
  if (op == "~") {
    std::string text = to_text(a, budget);
    return text += to_text(b, budget);
  }
  for (const Value* value : {&a, &b}) {
    if (value->is_undefined()) fail("'{}' of {}", op, value->type());
  }
  if (a.is_number() && b.is_number()) {
    if (a.is_float() || b.is_float()) return of_floats(op, a.number(op), b.number(op));
    return of_integers(op, a.integer(op), b.integer(op), budget);
  }
  if (op == "+") return sum(a, b, budget);
  const auto repeats = [](const Value& value) { return value.is_string() || value.is_list(); };
  if (op == "*" && repeats(a) && b.is_number()) return repeated(a, b.integer("'*'"), budget);
  if (op == "*" && repeats(b) && a.is_number()) return repeated(b, a.integer("'*'"), budget);
  fail("'{}' needs numbers, not {} and {}", op, a.type(), b.type());
}

Value attribute(const Value& value, const std::string& name, Budget& budget) {
  budget.spend(1);
  if (value.is_undefined()) fail("{} has no attribute '{}'", value.type(), name);
  if (value.is_namespace()) {
    for (const auto& [key, member] : value.members()) {
      if (key == name) return member;
    }
    return Value::undefined(name);
  }
  Value bound = method(value, name, budget);
  if (!bound.is_undefined() || !value.is_dict()) return bound;
  budget.spend(value.dict().size());
  const Value* found = value.find(name);
  return found != nullptr ? *found : bound;
}

Value subscript(const Value& value, const Value& key, Budget& budget) {
  budget.spend(1);
  if (value.is_undefined()) fail("{} has no elements", value.type());
  if (value.is_dict() && key.is_string()) {
    budget.spend(value.dict().size());
    if (const Value* found = value.find(key.string())) return *found;
  }
  if (key.is_string()) return attribute(value, key.string(), budget);
  if (!key.is_integer() || !(value.is_list() || value.is_string())) return Value::undefined(to_text(key, budget));
  int64_t place = key.integer("a subscript");
  if (value.is_list()) {
    const auto size = static_cast<int64_t>(value.list().size());
    if (place < 0) place += size;
    return place < 0 || place >= size ? Value::undefined("element " + to_text(key, budget))
                                      : value.list()[static_cast<size_t>(place)];
  }
  budget.spend(value.string().size());
  const auto all = characters(value.string());
  if (place < 0) place += static_cast<int64_t>(all.size());
  if (place < 0 || place >= static_cast<int64_t>(all.size()))
    return Value::undefined("character " + to_text(key, budget));
  return all[static_cast<size_t>(place)];
}

Value slice(const Value& value, const Value& begin, const Value& end, const Value& step, Budget& budget) {
  if (!value.is_list() && !value.is_string()) fail("{} cannot be sliced", value.type());
  const List all = elements(value, budget);
  const Range range = range_of(begin, end, step, static_cast<int64_t>(all.size()));
  List chosen;
  for (int64_t i = range.begin; range.step < 0 ? i > range.end : i < range.end;) {
    chosen.push_back(all[static_cast<size_t>(i)]);
    if (__builtin_add_overflow(i, range.step, &i)) break;
  }
  if (value.is_list()) return chosen;
  std::string text;
  for (const auto& character : chosen) text += character.string();
  return text;
}

List elements(const Value& value, Budget& budget) {
  if (value.is_list()) {
    budget.spend(value.list().size());
    return value.list();
  }
  List list;
  if (value.is_string()) {
    for (const auto character : characters(value.string())) {
      budget.spend(16);  // a value of its own each
      list.emplace_back(character);
    }
  } else if (value.is_dict()) {
    for (const auto& [key, entry] : value.dict()) {
      budget.spend(1 + key.size());
      list.emplace_back(key);
    }
  } else if (!value.is_undefined()) {
    fail("{} has no elements to go through", value.type());
  }
  return list;
}

}  // namespace seqloom::jinja
