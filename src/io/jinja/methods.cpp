// Methods of texts, lists and dicts.
#include <algorithm>
#include <map>

#include "base/error.h"
#include "io/jinja/builtins.h"
#include "io/jinja/strings.h"

namespace seqloom::jinja {
namespace {

using Method = Value (*)(const Value& self, const Arguments& arguments, Budget& budget);
using Methods = std::map<std::string, Method, std::less<>>;

/// The text of an argument.
const std::string& text_of(const Value& value, std::string_view what) {
  if (!value.is_string()) fail("{} must be a text, not {}", what, value.type());
  return value.string();
}

bool given(const Value& value) {
  return !value.is_undefined() && !value.is_none();
}

Value list_of(const std::vector<std::string>& parts, Budget& budget) {
  List list;
  for (const auto& part : parts) {
    budget.spend(1 + part.size());
    list.emplace_back(part);
  }
  return list;
}

template <Side side>
Value strip_method(const Value& self, const Arguments& arguments, Budget& budget) {
  const auto set = bind_arguments(arguments, "strip", {"chars"});
  if (!given(set[0])) return strip(self.string(), side);
  const std::string& chars = text_of(set[0], "strip: chars");
  budget.spend(self.string().size() * (1 + chars.size()));
  return strip(self.string(), chars, side);
}

template <bool from_right>
Value split_method(const Value& self, const Arguments& arguments, Budget& budget) {
  const auto bound = bind_arguments(arguments, "split", {"sep", "maxsplit"});
  const int64_t limit = given(bound[1]) ? bound[1].integer("split: maxsplit") : -1;
  if (!given(bound[0])) {
    if (from_right && limit >= 0) fail("rsplit: maxsplit needs a separator");
    return list_of(split_words(self.string(), limit), budget);
  }
  const std::string& separator = text_of(bound[0], "split: sep");
  if (separator.empty()) fail("split: an empty separator");
  budget.spend(search_cost(self.string(), separator));
  return list_of(split(self.string(), separator, limit, from_right), budget);
}

template <bool at_end>
bool has_affix(const std::string& text, const std::string& affix) {
  return at_end ? text.ends_with(affix) : text.starts_with(affix);
}

template <bool at_end>
Value affix_method(const Value& self, const Arguments& arguments, Budget&) {
  const Value affix = bind_arguments(arguments, at_end ? "endswith" : "startswith", {"prefix"}, 1)[0];
  if (!affix.is_list()) return has_affix<at_end>(self.string(), text_of(affix, at_end ? "endswith" : "startswith"));
  return std::any_of(affix.list().begin(), affix.list().end(),
                     [&](const Value& one) { return has_affix<at_end>(self.string(), text_of(one, "startswith")); });
}

template <bool at_end>
Value remove_affix(const Value& self, const Arguments& arguments, Budget&) {
  const std::string affix = text_of(bind_arguments(arguments, "removeprefix", {"prefix"}, 1)[0], "removeprefix");
  const std::string& text = self.string();
  if (!has_affix<at_end>(text, affix)) return self;
  return at_end ? text.substr(0, text.size() - affix.size()) : text.substr(affix.size());
}

template <bool last>
int64_t position(const Value& self, const Arguments& arguments, Budget& budget) {
  const std::string part = text_of(bind_arguments(arguments, "find", {"sub"}, 1)[0], "find");
  budget.spend(search_cost(self.string(), part));
  const size_t at = last ? self.string().rfind(part) : self.string().find(part);
  return at == std::string::npos ? -1
                                 : static_cast<int64_t>(character_count(std::string_view(self.string()).substr(0, at)));
}

Value text_index(const Value& self, const Arguments& arguments, Budget& budget) {
  const int64_t at = position<false>(self, arguments, budget);
  if (at < 0) fail("index: the text was not found");
  return at;
}

template <bool last>
Value text_find(const Value& self, const Arguments& arguments, Budget& budget) {
  return position<last>(self, arguments, budget);
}

Value text_count(const Value& self, const Arguments& arguments, Budget& budget) {
  const std::string part = text_of(bind_arguments(arguments, "count", {"sub"}, 1)[0], "count");
  budget.spend(search_cost(self.string(), part));
  if (part.empty()) return static_cast<int64_t>(character_count(self.string()) + 1);
  return static_cast<int64_t>(split(self.string(), part, -1, false).size()) - 1;
}

Value text_replace(const Value& self, const Arguments& arguments, Budget& budget) {
  return apply_filter("replace", self, arguments, budget);
}

Value text_join(const Value& self, const Arguments& arguments, Budget& budget) {
  const Value parts = bind_arguments(arguments, "join", {"iterable"}, 1)[0];
  for (const auto& part : elements(parts, budget)) text_of(part, "join: each element");
  return apply_filter("join", parts, Arguments{{self}, {}}, budget);
}

template <std::string (*function)(std::string_view)>
Value mapped(const Value& self, const Arguments& arguments, Budget&) {
  bind_arguments(arguments, "the method", {});
  return function(self.string());
}

template <bool (*belongs)(std::string_view)>
Value all_characters(const Value& self, const Arguments& arguments, Budget&) {
  bind_arguments(arguments, "the method", {});
  const auto all = characters(self.string());
  return !all.empty() && std::all_of(all.begin(), all.end(), belongs);
}

bool is_digit(std::string_view character) {
  return character.size() == 1 && character[0] >= '0' && character[0] <= '9';
}
bool is_alphanumeric(std::string_view character) {
  return is_digit(character) || is_letter(character);
}

Value is_upper_text(const Value& self, const Arguments&, Budget&) {
  return upper(self.string()) == self.string() && lower(self.string()) != self.string();
}
Value is_lower_text(const Value& self, const Arguments&, Budget&) {
  return lower(self.string()) == self.string() && upper(self.string()) != self.string();
}

Value lines(const Value& self, const Arguments& arguments, Budget& budget) {
  bind_arguments(arguments, "splitlines", {});
  return list_of(split_lines(self.string()), budget);
}

const Methods& text_methods() {
  static const Methods kMethods = {
      {"strip", strip_method<Side::kBoth>},
      {"lstrip", strip_method<Side::kLeft>},
      {"rstrip", strip_method<Side::kRight>},
      {"split", split_method<false>},
      {"rsplit", split_method<true>},
      {"splitlines", lines},
      {"startswith", affix_method<false>},
      {"endswith", affix_method<true>},
      {"removeprefix", remove_affix<false>},
      {"removesuffix", remove_affix<true>},
      {"find", text_find<false>},
      {"rfind", text_find<true>},
      {"index", text_index},
      {"count", text_count},
      {"replace", text_replace},
      {"join", text_join},
      {"upper", mapped<upper>},
      {"lower", mapped<lower>},
      {"title", mapped<titled>},
      {"capitalize", mapped<capitalized>},
      {"isspace", all_characters<is_space>},
      {"isalpha", all_characters<is_letter>},
      {"isdigit", all_characters<is_digit>},
      {"isalnum", all_characters<is_alphanumeric>},
      {"isupper", is_upper_text},
      {"islower", is_lower_text},
  };
  return kMethods;
}

enum class Part { kKeys, kValues, kItems };
template <Part part>
Value parts_of_dict(const Value& self, const Arguments& arguments, Budget& budget) {
  bind_arguments(arguments, "the method", {});
  List list;
  budget.spend(3 * self.dict().size());
  for (const auto& [key, value] : self.dict()) {
    if (part == Part::kKeys) list.emplace_back(key);
    if (part == Part::kValues) list.push_back(value);
    if (part == Part::kItems) list.emplace_back(List{key, value});
  }
  return list;
}

Value dict_get(const Value& self, const Arguments& arguments, Budget& budget) {
  const auto bound = bind_arguments(arguments, "get", {"key", "default"}, 1);
  budget.spend(self.dict().size());
  const Value* found = bound[0].is_string() ? self.find(bound[0].string()) : nullptr;
  if (found != nullptr) return *found;
  return bound[1].is_undefined() ? Value(Value::None{}) : bound[1];
}

const Methods& dict_methods() {
  static const Methods kMethods = {{"keys", parts_of_dict<Part::kKeys>},
                                   {"values", parts_of_dict<Part::kValues>},
                                   {"items", parts_of_dict<Part::kItems>},
                                   {"get", dict_get}};
  return kMethods;
}

Value list_count(const Value& self, const Arguments& arguments, Budget& budget) {
  const Value item = bind_arguments(arguments, "count", {"value"}, 1)[0];
  return static_cast<int64_t>(std::count_if(self.list().begin(), self.list().end(),
                                            [&](const Value& other) { return equal(item, other, budget); }));
}

Value list_index(const Value& self, const Arguments& arguments, Budget& budget) {
  const Value item = bind_arguments(arguments, "index", {"value"}, 1)[0];
  for (size_t i = 0; i < self.list().size(); ++i) {
    if (equal(self.list()[i], item, budget)) return static_cast<int64_t>(i);
  }
  fail("index: the list does not hold the value");
}

const Methods& list_methods() {
  static const Methods kMethods = {{"count", list_count}, {"index", list_index}};
  return kMethods;
}

}  // namespace

Value method(const Value& self, const std::string& name, Budget& budget) {
  static const Methods kNone;
  const Methods& methods = self.is_string() ? text_methods()
                           : self.is_list() ? list_methods()
                           : self.is_dict() ? dict_methods()
                                            : kNone;
  const auto found = methods.find(name);
  if (found == methods.end()) return Value::undefined(name);
  return Callable{name, [self, name, function = found->second, &budget](const Arguments& arguments) {
                    budget.spend(1 + (self.is_string() ? self.string().size() : 0));
                    return function(self, arguments, budget);
                  }};
}

}  // namespace seqloom::jinja
