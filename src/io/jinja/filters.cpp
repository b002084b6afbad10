// value | filter
#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>

#include "base/error.h"
#include "io/jinja/builtins.h"
#include "io/jinja/strings.h"

namespace seqloom::jinja {
namespace {

using Filter = Value (*)(const Value& value, const Arguments& arguments, Budget& budget);

bool given(const Value& value) {
  return !value.is_undefined() && !value.is_none();
}

/// Jinja's filters of texts take anything and work on what it prints.
template <std::string (*function)(std::string_view)>
Value of_text(const Value& value, const Arguments& arguments, Budget& budget) {
  bind_arguments(arguments, "the filter", {});
  return function(to_text(value, budget));
}

/// Jinja's own idea of titles: words begin behind white space, '-' and opening brackets.
std::string title_filter(std::string_view text) {
  std::string result;
  bool inside = false;
  for (const auto character : characters(text)) {
    result += inside ? lower(character) : upper(character);
    inside = !is_space(character) && character.find_first_of("-({[<") == std::string_view::npos;
  }
  return result;
}

std::string escaped(std::string_view text) {
  std::string result;
  for (const char c : text) {
    if (c == '&')
      result += "&amp;";
    else if (c == '<')
      result += "&lt;";
    else if (c == '>')
      result += "&gt;";
    else if (c == '"')
      result += "&#34;";
    else if (c == '\'')
      result += "&#39;";
    else
      result += c;
  }
  return result;
}

Value trim(const Value& value, const Arguments& arguments, Budget& budget) {
  return method(to_text(value, budget), "strip", budget).callable().call(arguments);
}

Value replace(const Value& value, const Arguments& arguments, Budget& budget) {
  const auto bound = bind_arguments(arguments, "replace", {"old", "new", "count"}, 2);
  const std::string text = to_text(value, budget), old = to_text(bound[0], budget), fresh = to_text(bound[1], budget);
  const int64_t limit = given(bound[2]) ? bound[2].integer("replace: count") : -1;
  budget.spend(search_cost(text, old));
  const size_t places = old.empty() ? text.size() + 1 : split(text, old, -1, false).size();
  const size_t used = limit < 0 ? places : std::min(places, static_cast<size_t>(limit));
  if (!fresh.empty() && used > SIZE_MAX / 2 / fresh.size()) budget.spend(SIZE_MAX / 2);
  budget.spend(used * fresh.size());
  return replaced(text, old, fresh, limit);
}

Value indent(const Value& value, const Arguments& arguments, Budget& budget) {
  const auto bound = bind_arguments(arguments, "indent", {"width", "first", "blank"});
  std::string margin = "    ";
  if (bound[0].is_string())
    margin = bound[0].string();
  else if (given(bound[0]))
    margin = std::string(std::clamp<int64_t>(bound[0].integer("indent: width"), 0, 1000), ' ');
  const auto lines = split_lines(to_text(value, budget) + "\n");
  std::string text = bound[1].truth() ? margin : "";
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) text += '\n';
    const bool indents = i > 0 && (bound[2].truth() || !lines[i].empty());
    budget.spend(1 + margin.size());
    text += (indents ? margin : "") + lines[i];
  }
  return text;
}

Value length(const Value& value, const Arguments&, Budget& budget) {
  if (value.is_string()) {
    budget.spend(value.string().size());
    return static_cast<int64_t>(character_count(value.string()));
  }
  if (value.is_dict()) return static_cast<int64_t>(value.dict().size());
  if (value.is_list()) return static_cast<int64_t>(value.list().size());
  if (value.is_undefined()) return int64_t{0};
  fail("length: {} has none", value.type());
}

Value default_value(const Value& value, const Arguments& arguments, Budget&) {
  const auto bound = bind_arguments(arguments, "default", {"default_value", "boolean"});
  const bool missing = value.is_undefined() || (bound[1].truth() && !value.truth());
  if (!missing) return value;
  return arguments.positional.empty() && bound[0].is_undefined() ? Value("") : bound[0];
}

Value to_json_filter(const Value& value, const Arguments& arguments, Budget& budget) {
  const auto bound = bind_arguments(arguments, "tojson", {"ensure_ascii", "indent", "separators", "sort_keys"});
  if (given(bound[2])) fail("tojson: separators are not supported");
  if (bound[0].truth()) fail("tojson: ensure_ascii is not supported");
  if (bound[3].truth()) fail("tojson: sort_keys is not supported");
  return to_json(value, given(bound[1]) ? bound[1].integer("tojson: indent") : -1, budget);
}

Value to_integer(const Value& value, const Arguments& arguments, Budget& budget) {
  const Value fallback = bind_arguments(arguments, "int", {"default"})[0];
  const Value otherwise = fallback.is_undefined() ? Value(int64_t{0}) : fallback;
  double number = 0;
  if (value.is_string()) {
    const std::string text = strip(value.string(), Side::kBoth);
    const char* begin = text.data() + (text.starts_with('+') ? 1 : 0);
    const char* end = text.data() + text.size();
    int64_t whole = 0;
    if (auto result = std::from_chars(begin, end, whole); result.ec == std::errc() && result.ptr == end) return whole;
    if (auto result = std::from_chars(begin, end, number); result.ec != std::errc() || result.ptr != end) {
      return otherwise;
    }
  } else if (value.is_float()) {
    number = value.number("int");
  } else {
    return value.is_number() ? Value(value.integer("int")) : otherwise;
  }
  budget.spend(1);
  return std::abs(number) < 9e18 ? Value(static_cast<int64_t>(number)) : otherwise;
}

Value to_float(const Value& value, const Arguments& arguments, Budget&) {
  const Value fallback = bind_arguments(arguments, "float", {"default"})[0];
  const Value otherwise = fallback.is_undefined() ? Value(0.0) : fallback;
  if (value.is_number()) return value.number("float");
  if (!value.is_string()) return otherwise;
  const std::string text = strip(value.string(), Side::kBoth);
  double number = 0;
  const auto result = std::from_chars(text.data(), text.data() + text.size(), number);
  return result.ec == std::errc() && result.ptr == text.data() + text.size() ? Value(number) : otherwise;
}

Value absolute(const Value& value, const Arguments&, Budget&) {
  if (value.is_float()) return std::abs(value.number("abs"));
  return std::abs(std::max(value.integer("abs"), -INT64_MAX));
}

Value rounded(const Value& value, const Arguments& arguments, Budget&) {
  const auto bound = bind_arguments(arguments, "round", {"precision", "method"});
  const int64_t digits = given(bound[0]) ? bound[0].integer("round: precision") : 0;
  if (digits < 0 || digits > 15) fail("round: precision = {} is outside 0..15", digits);
  const std::string how = given(bound[1]) && bound[1].is_string() ? bound[1].string() : "common";
  const double scale = std::pow(10.0, static_cast<double>(digits)), number = value.number("round");
  if (how == "ceil") return std::ceil(number * scale) / scale;
  if (how == "floor") return std::floor(number * scale) / scale;
  if (how != "common") fail("round: method must be common, ceil or floor");
  return std::nearbyint(number * scale) / scale;  // halves to even, as Python
}

Value word_count(const Value& value, const Arguments&, Budget& budget) {
  return static_cast<int64_t>(split_words(to_text(value, budget), -1).size());
}

Value as_text(const Value& value, const Arguments&, Budget& budget) {
  return to_text(value, budget);
}

const std::map<std::string, Filter, std::less<>>& text_filters() {
  static const std::map<std::string, Filter, std::less<>> kFilters = {
      {"trim", trim},
      {"upper", of_text<upper>},
      {"lower", of_text<lower>},
      {"title", of_text<title_filter>},
      {"capitalize", of_text<capitalized>},
      {"escape", of_text<escaped>},
      {"e", of_text<escaped>},
      {"replace", replace},
      {"indent", indent},
      {"length", length},
      {"count", length},
      {"default", default_value},
      {"d", default_value},
      {"tojson", to_json_filter},
      {"string", as_text},
      {"safe", as_text},
      {"int", to_integer},
      {"float", to_float},
      {"abs", absolute},
      {"round", rounded},
      {"wordcount", word_count},
  };
  return kFilters;
}

}  // namespace

std::vector<Value> bind_arguments(const Arguments& arguments, const std::string& what,
                                  const std::vector<std::string_view>& names, size_t required) {
  if (arguments.positional.size() > names.size()) fail("{}: too many arguments", what);
  std::vector<Value> bound = arguments.positional;
  bound.resize(names.size());
  for (const auto& [name, value] : arguments.named) {
    const auto place = static_cast<size_t>(std::find(names.begin(), names.end(), name) - names.begin());
    if (place == names.size()) fail("{}: there is no argument '{}'", what, name);
    if (place < arguments.positional.size()) fail("{}: the argument '{}' is given twice", what, name);
    bound[place] = value;
  }
  for (size_t i = arguments.positional.size(); i < required; ++i) {
    if (bound[i].is_undefined()) fail("{}: the argument '{}' is missing", what, names[i]);
  }
  return bound;
}

Value apply_list_filter(const std::string& name, const Value& value, const Arguments& arguments, Budget& budget);

Value apply_filter(const std::string& name, const Value& value, const Arguments& arguments, Budget& budget) {
  budget.spend(1);
  const auto found = text_filters().find(name);
  if (found != text_filters().end()) return found->second(value, arguments, budget);
  return apply_list_filter(name, value, arguments, budget);
}

}  // namespace seqloom::jinja
