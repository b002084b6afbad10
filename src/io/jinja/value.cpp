#include "io/jinja/value.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace seqloom::jinja {
namespace {

constexpr int kMaxDepth = 64;

void check_element(const Value& value) {
  if (value.is_callable() || value.is_namespace()) fail("a {} cannot be put into a list or a dict", value.type());
}

int checked_depth(int depth) {
  if (depth > kMaxDepth) fail("lists and dicts are nested deeper than {} levels", kMaxDepth);
  return depth;
}

template <typename T>
int sign(const T& a, const T& b) {
  return a < b ? -1 : b < a ? 1 : 0;
}

int compare_numbers(const Value& a, const Value& b) {
  if (a.is_float() || b.is_float()) return sign(a.number("a number"), b.number("a number"));
  return sign(a.integer("a number"), b.integer("a number"));
}

}  // namespace

void Budget::spend(size_t units) {
  if (units > static_cast<uint64_t>(left_)) fail("the template takes too many steps or makes too much text");
  left_ -= static_cast<int64_t>(units);
}

size_t search_cost(std::string_view text, std::string_view part) {
  constexpr size_t kCompared = 64;  // bytes at once
  return text.size() * (1 + part.size() / kCompared);
}

Value::Value(List list) {
  int depth = 1;
  for (const auto& item : list) {
    check_element(item);
    depth = std::max(depth, 1 + item.depth());
  }
  held_ = std::make_shared<const Container<List>>(Container<List>{std::move(list), checked_depth(depth)});
}

Value::Value(Dict dict) {
  int depth = 1;
  for (const auto& [key, item] : dict) {
    check_element(item);
    depth = std::max(depth, 1 + item.depth());
  }
  held_ = std::make_shared<const Container<Dict>>(Container<Dict>{std::move(dict), checked_depth(depth)});
}

Value Value::undefined(std::string name) {
  Value value;
  value.held_ = Undefined{std::make_shared<const std::string>(std::move(name))};
  return value;
}

Value Value::make_namespace(Namespace members) {
  Value value;
  value.held_ = std::make_shared<Namespace>(std::move(members));
  return value;
}

Value Value::from_json(const nlohmann::ordered_json& json) {
  switch (json.type()) {
    case nlohmann::ordered_json::value_t::boolean:
      return json.get<bool>();
    case nlohmann::ordered_json::value_t::number_integer:
      return json.get<int64_t>();
    case nlohmann::ordered_json::value_t::number_unsigned:
      if (json.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) return json.get<double>();
      return json.get<int64_t>();
    case nlohmann::ordered_json::value_t::number_float:
      return json.get<double>();
    case nlohmann::ordered_json::value_t::string:
      return json.get_ref<const std::string&>();
    case nlohmann::ordered_json::value_t::array: {
      List list;
      for (const auto& item : json) list.push_back(from_json(item));
      return list;
    }
    case nlohmann::ordered_json::value_t::object: {
      Dict dict;
      for (const auto& [key, item] : json.items()) dict.emplace_back(key, from_json(item));
      return dict;
    }
    default:
      return None{};
  }
}

int Value::depth() const {
  if (const auto* list = std::get_if<ListRef>(&held_)) return (*list)->depth;
  if (const auto* dict = std::get_if<DictRef>(&held_)) return (*dict)->depth;
  return 0;
}

int64_t Value::integer(std::string_view what) const {
  if (is_bool()) return std::get<bool>(held_) ? 1 : 0;
  if (is_integer()) return std::get<int64_t>(held_);
  fail("{} must be an integer, not {}", what, type());
}

double Value::number(std::string_view what) const {
  if (is_float()) return std::get<double>(held_);
  if (is_number()) return static_cast<double>(integer(what));
  fail("{} must be a number, not {}", what, type());
}

bool Value::truth() const {
  if (is_number()) return is_float() ? std::get<double>(held_) != 0 : integer("") != 0;
  if (is_string()) return !string().empty();
  if (is_list()) return !list().empty();
  if (is_dict()) return !dict().empty();
  return is_namespace() || is_callable();
}

std::string Value::type() const {
  if (const auto* missing = std::get_if<Undefined>(&held_)) {
    return missing->name ? "undefined ('" + *missing->name + "')" : "undefined";
  }
  constexpr const char* kNames[] = {"", "None", "bool", "int", "float", "str", "list", "dict", "namespace", "function"};
  return kNames[held_.index()];
}

const Value* Value::find(std::string_view key) const {
  for (const auto& [name, value] : dict()) {
    if (name == key) return &value;
  }
  return nullptr;
}

bool equal(const Value& a, const Value& b, Budget& budget) {
  budget.spend(1);
  if (a.is_number() && b.is_number()) return compare_numbers(a, b) == 0;
  if (a.is_string() && b.is_string()) return a.string() == b.string();
  if (a.is_list() && b.is_list()) {
    return std::equal(a.list().begin(), a.list().end(), b.list().begin(), b.list().end(),
                      [&](const Value& x, const Value& y) { return equal(x, y, budget); });
  }
  if (a.is_dict() && b.is_dict()) {
    if (a.dict().size() != b.dict().size()) return false;
    budget.spend(a.dict().size() * b.dict().size());  // keys are looked for one by one
    return std::all_of(a.dict().begin(), a.dict().end(), [&](const auto& item) {
      const Value* other = b.find(item.first);
      return other != nullptr && equal(item.second, *other, budget);
    });
  }
  if (a.is_namespace() && b.is_namespace()) return &a.members() == &b.members();
  if (a.is_callable() && b.is_callable()) return &a.callable() == &b.callable();
  return (a.is_none() && b.is_none()) || (a.is_undefined() && b.is_undefined());
}

int compare(const Value& a, const Value& b, Budget& budget) {
  budget.spend(1);
  if (a.is_number() && b.is_number()) return compare_numbers(a, b);
  if (a.is_string() && b.is_string()) return sign(a.string().compare(b.string()), 0);  // UTF-8 sorts as its characters
  if (a.is_list() && b.is_list()) {
    const size_t common = std::min(a.list().size(), b.list().size());
    for (size_t i = 0; i < common; ++i) {
      if (!equal(a.list()[i], b.list()[i], budget)) return compare(a.list()[i], b.list()[i], budget);
    }
    return sign(a.list().size(), b.list().size());
  }
  fail("{} and {} cannot be compared", a.type(), b.type());
}

bool contains(const Value& container, const Value& item, Budget& budget) {
  if (container.is_string()) {
    if (!item.is_string()) fail("'in' a text looks for a text, not for {}", item.type());
    budget.spend(search_cost(container.string(), item.string()));
    return container.string().find(item.string()) != std::string::npos;
  }
  if (container.is_dict()) {
    budget.spend(container.dict().size());
    return item.is_string() && container.find(item.string()) != nullptr;
  }
  if (container.is_list()) {
    return std::any_of(container.list().begin(), container.list().end(),
                       [&](const Value& element) { return equal(element, item, budget); });
  }
  if (container.is_undefined()) return false;
  fail("'in' needs a text, a list or a dict, not {}", container.type());
}

}  // namespace seqloom::jinja
