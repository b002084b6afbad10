// Filters of lists: value | join(", "), value | selectattr("role", "equalto", "user") ...
#include <algorithm>
#include <map>

#include "base/error.h"
#include "io/jinja/builtins.h"
#include "io/jinja/strings.h"

namespace seqloom::jinja {
namespace {

using Filter = Value (*)(const Value& value, const Arguments& arguments, Budget& budget);

/// "a.b.0" of a value, as the filters' `attribute` takes it; an integer is a subscript.
Value at_path(const Value& value, const Value& path, Budget& budget) {
  if (path.is_integer()) return subscript(value, path, budget);
  if (!path.is_string()) fail("attribute must be a text, not {}", path.type());
  Value result = value;
  for (const auto& part : split(path.string(), ".", -1, false)) {
    const bool number =
        !part.empty() && std::all_of(part.begin(), part.end(), [](char c) { return c >= '0' && c <= '9'; });
    if (number && part.size() > 9) fail("attribute '{}' is out of range", part);
    result = subscript(result, number ? Value(int64_t{std::stoi(part)}) : Value(part), budget);
  }
  return result;
}

Value at_path_if_given(const Value& value, const Value& path, Budget& budget) {
  return path.is_undefined() || path.is_none() ? value : at_path(value, path, budget);
}

/// What sort, unique, min and max compare: without regard to case unless told.
Value sort_key(const Value& value, const Value& path, bool case_sensitive, Budget& budget) {
  Value key = at_path_if_given(value, path, budget);
  return key.is_string() && !case_sensitive ? Value(lower(key.string())) : key;
}

Value join(const Value& value, const Arguments& arguments, Budget& budget) {
  const auto bound = bind_arguments(arguments, "join", {"d", "attribute"});
  const std::string between = to_text(bound[0], budget);
  std::string text;
  bool first = true;
  for (const auto& element : elements(value, budget)) {
    if (!first) {
      budget.spend(between.size());
      text += between;
    }
    first = false;
    text += to_text(at_path_if_given(element, bound[1], budget), budget);
  }
  return text;
}

template <bool last>
Value end_of(const Value& value, const Arguments& arguments, Budget& budget) {
  bind_arguments(arguments, last ? "last" : "first", {});
  const List all = elements(value, budget);
  if (all.empty()) return Value::undefined(last ? "the last of nothing" : "the first of nothing");
  return last ? all.back() : all.front();
}

Value as_list(const Value& value, const Arguments& arguments, Budget& budget) {
  bind_arguments(arguments, "list", {});
  return elements(value, budget);
}

Value reversed(const Value& value, const Arguments& arguments, Budget& budget) {
  bind_arguments(arguments, "reverse", {});
  List all = elements(value, budget);
  std::reverse(all.begin(), all.end());
  if (!value.is_string()) return all;
  std::string text;
  for (const auto& character : all) text += character.string();
  return text;
}

/// A merge sort: an order that contradicts itself cannot lead it astray, as it can std::sort.
Value sorted(const Value& value, const Arguments& arguments, Budget& budget) {
  const auto bound = bind_arguments(arguments, "sort", {"reverse", "case_sensitive", "attribute"});
  std::vector<std::pair<Value, Value>> keyed;
  for (const auto& element : elements(value, budget)) {
    keyed.emplace_back(sort_key(element, bound[2], bound[1].truth(), budget), element);
  }
  const bool falling = bound[0].truth();
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& a, const auto& b) {
    return falling ? compare(b.first, a.first, budget) < 0 : compare(a.first, b.first, budget) < 0;
  });
  List list;
  for (auto& [key, element] : keyed) list.push_back(std::move(element));
  return list;
}

Value unique(const Value& value, const Arguments& arguments, Budget& budget) {
  const auto bound = bind_arguments(arguments, "unique", {"case_sensitive", "attribute"});
  List keys, list;
  for (const auto& element : elements(value, budget)) {
    Value key = sort_key(element, bound[1], bound[0].truth(), budget);
    const auto same = [&](const Value& other) { return equal(key, other, budget); };
    if (std::any_of(keys.begin(), keys.end(), same)) continue;
    keys.push_back(std::move(key));
    list.push_back(element);
  }
  return list;
}

template <bool largest>
Value extreme(const Value& value, const Arguments& arguments, Budget& budget) {
  const auto bound = bind_arguments(arguments, largest ? "max" : "min", {"case_sensitive", "attribute"});
  const List all = elements(value, budget);
  if (all.empty()) return Value::undefined("the largest of nothing");
  const auto key = [&](const Value& element) { return sort_key(element, bound[1], bound[0].truth(), budget); };
  Value best = all.front();
  for (const auto& element : all) {
    const int order = compare(key(element), key(best), budget);
    if (largest ? order > 0 : order < 0) best = element;
  }
  return best;
}

Value sum(const Value& value, const Arguments& arguments, Budget& budget) {
  const auto bound = bind_arguments(arguments, "sum", {"attribute", "start"});
  Value total = bound[1].is_undefined() ? Value(int64_t{0}) : bound[1];
  for (const auto& element : elements(value, budget)) {
    total = apply_operator("+", total, at_path_if_given(element, bound[0], budget), budget);
  }
  return total;
}

Value items(const Value& value, const Arguments& arguments, Budget& budget) {
  bind_arguments(arguments, "items", {});
  if (value.is_undefined()) return List{};
  if (!value.is_dict()) fail("items: needs a dict, not {}", value.type());
  return method(value, "items", budget).callable().call({});
}

Value sorted_items(const Value& value, const Arguments& arguments, Budget& budget) {
  const auto bound = bind_arguments(arguments, "dictsort", {"case_sensitive", "by", "reverse"});
  const bool by_value = bound[1].is_string() && bound[1].string() == "value";
  const Value place = int64_t{by_value ? 1 : 0};
  return sorted(items(value, {}, budget),
                {{}, {{"attribute", place}, {"case_sensitive", bound[0]}, {"reverse", bound[2]}}}, budget);
}

/// map("filter", arguments...) and map(attribute="name", default=...).
Value map(const Value& value, const Arguments& arguments, Budget& budget) {
  List list;
  if (arguments.positional.empty()) {
    const auto bound = bind_arguments(arguments, "map", {"attribute", "default"});
    if (bound[0].is_undefined()) fail("map: needs the name of a filter, or attribute = a name");
    for (const auto& element : elements(value, budget)) {
      Value mapped = at_path(element, bound[0], budget);
      list.push_back(mapped.is_undefined() && !bound[1].is_undefined() ? bound[1] : std::move(mapped));
    }
    return list;
  }
  if (!arguments.positional[0].is_string()) fail("map: the name of a filter must be a text");
  const Arguments rest{{arguments.positional.begin() + 1, arguments.positional.end()}, arguments.named};
  for (const auto& element : elements(value, budget)) {
    list.push_back(apply_filter(arguments.positional[0].string(), element, rest, budget));
  }
  return list;
}

/// select("test", ...), reject, selectattr("name", "test", ...) and rejectattr. Without a test: what is true.
template <bool by_attribute, bool keeps>
Value chosen(const Value& value, const Arguments& arguments, Budget& budget) {
  size_t used = by_attribute ? 1 : 0;
  if (arguments.positional.size() < used) fail("selectattr: needs the name of an attribute");
  const bool tested = arguments.positional.size() > used;
  if (tested && !arguments.positional[used].is_string()) fail("select: the name of a test must be a text");
  const std::string test = tested ? arguments.positional[used++].string() : "";
  const Arguments rest{{arguments.positional.begin() + static_cast<int64_t>(used), arguments.positional.end()},
                       arguments.named};
  List list;
  for (const auto& element : elements(value, budget)) {
    const Value looked_at = by_attribute ? at_path(element, arguments.positional[0], budget) : element;
    const bool holds = tested ? apply_test(test, looked_at, rest, budget) : looked_at.truth();
    if (holds == keeps) list.push_back(element);
  }
  return list;
}

const std::map<std::string, Filter, std::less<>>& list_filters() {
  static const std::map<std::string, Filter, std::less<>> kFilters = {
      {"join", join},
      {"first", end_of<false>},
      {"last", end_of<true>},
      {"list", as_list},
      {"reverse", reversed},
      {"sort", sorted},
      {"unique", unique},
      {"min", extreme<false>},
      {"max", extreme<true>},
      {"sum", sum},
      {"items", items},
      {"dictsort", sorted_items},
      {"map", map},
      {"select", chosen<false, true>},
      {"reject", chosen<false, false>},
      {"selectattr", chosen<true, true>},
      {"rejectattr", chosen<true, false>},
  };
  return kFilters;
}

}  // namespace

Value apply_list_filter(const std::string& name, const Value& value, const Arguments& arguments, Budget& budget) {
  const auto found = list_filters().find(name);
  if (found == list_filters().end()) fail("there is no filter '{}'", name);
  return found->second(value, arguments, budget);
}

}  // namespace seqloom::jinja
