#include <algorithm>
#include <ctime>

#include "base/error.h"
#include "io/jinja/builtins.h"
#include "io/json.h"

namespace seqloom::jinja {
namespace {

Value range(const Arguments& arguments, Budget& budget) {
  const auto bound = bind_arguments(arguments, "range", {"start", "stop", "step"}, 1);
  const bool only_stop = bound[1].is_undefined();
  int64_t at = only_stop ? 0 : bound[0].integer("range: start");
  const int64_t stop = bound[only_stop ? 0 : 1].integer("range: stop");
  const int64_t step = bound[2].is_undefined() ? 1 : bound[2].integer("range: step");
  if (step == 0) fail("range: step must not be 0");
  List list;
  while (step > 0 ? at < stop : at > stop) {
    budget.spend(4);
    list.emplace_back(at);
    if (__builtin_add_overflow(at, step, &at)) break;
  }
  return list;
}

/// The entries of dict(...) and namespace(...): those of a dict, and named ones.
Dict entries(const Arguments& arguments, const std::string& what, Budget& budget) {
  if (arguments.positional.size() > 1) fail("{}: too many arguments", what);
  Dict dict;
  if (!arguments.positional.empty()) {
    if (!arguments.positional[0].is_dict()) fail("{}: needs a dict, not {}", what, arguments.positional[0].type());
    dict = arguments.positional[0].dict();
  }
  for (const auto& argument : arguments.named) {  // clang 14 captures no structured bindings
    budget.spend(1 + dict.size());
    const auto same =
        std::find_if(dict.begin(), dict.end(), [&](const auto& entry) { return entry.first == argument.first; });
    if (same == dict.end())
      dict.push_back(argument);
    else
      same->second = argument.second;
  }
  budget.spend(dict.size());
  return dict;
}

Value strftime_now(const Arguments& arguments) {
  const Value format = bind_arguments(arguments, "strftime_now", {"format"}, 1)[0];
  if (!format.is_string() || format.string().size() > 100) fail("strftime_now: needs a text of at most 100 bytes");
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  char text[4096];
  return std::string(text, std::strftime(text, sizeof text, format.string().c_str(), &local));
}

[[noreturn]] Value raise(const Arguments& arguments, Budget& budget) {
  fail("{}", printable(to_text(bind_arguments(arguments, "raise_exception", {"message"})[0], budget), 400));
}

}  // namespace

std::vector<std::pair<std::string, Value>> globals(Budget& budget) {
  const auto function = [](std::string name, std::function<Value(const Arguments&)> call) {
    Callable callable{name, std::move(call)};
    return std::pair<std::string, Value>(std::move(name), std::move(callable));
  };
  return {
      function("range", [&budget](const Arguments& arguments) { return range(arguments, budget); }),
      function("dict", [&budget](const Arguments& arguments) { return Value(entries(arguments, "dict", budget)); }),
      function("namespace",
               [&budget](const Arguments& arguments) {
                 Dict members = entries(arguments, "namespace", budget);
                 return Value::make_namespace(std::move(members));
               }),
      function("strftime_now", strftime_now),
      function("raise_exception", [&budget](const Arguments& arguments) -> Value { raise(arguments, budget); }),
  };
}

}  // namespace seqloom::jinja
