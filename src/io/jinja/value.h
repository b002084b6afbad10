#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace seqloom::jinja {

class Value;
struct Arguments;

/// What a rendering may cost: a unit for each step and for each byte or element that is made, so that time and memory
/// have one bound. Throws Error when it is used up.
class Budget {
 public:
  explicit Budget(int64_t units) : left_(units) {}
  void spend(size_t units);

 private:
  int64_t left_;
};

/// The units for looking for `part` in `text`, at the worst.
size_t search_cost(std::string_view text, std::string_view part);

using List = std::vector<Value>;
/// In order of insertion, as Python's; keys are text.
using Dict = std::vector<std::pair<std::string, Value>>;
using Namespace = std::vector<std::pair<std::string, Value>>;

/// A macro, a built-in function or a method of a value.
struct Callable {
  std::string name;
  std::function<Value(const Arguments&)> call;
};

/// A value of a template, with Python's types and rules. Immutable but for namespaces, so that copies share.
class Value {
 public:
  struct Undefined {
    std::shared_ptr<const std::string> name;  // what was looked for, for messages
  };
  struct None {};

  Value() : held_(Undefined{}) {}
  Value(None none) : held_(none) {}
  Value(bool value) : held_(value) {}
  Value(int64_t value) : held_(value) {}
  Value(int) = delete;  // say int64_t
  Value(double value) : held_(value) {}
  Value(std::string text) : held_(std::make_shared<const std::string>(std::move(text))) {}
  Value(std::string_view text) : Value(std::string(text)) {}
  Value(const char* text) : Value(std::string(text)) {}
  /// Throw Error for containers nested too deeply, and for a macro or a namespace inside one.
  Value(List list);
  Value(Dict dict);
  Value(Callable callable) : held_(std::make_shared<const Callable>(std::move(callable))) {}
  static Value undefined(std::string name);
  static Value make_namespace(Namespace members);
  /// From JSON text's tree.
  static Value from_json(const nlohmann::ordered_json& json);

  bool is_undefined() const { return is<Undefined>(); }
  bool is_none() const { return is<None>(); }
  bool is_bool() const { return is<bool>(); }
  bool is_integer() const { return is<int64_t>(); }
  bool is_float() const { return is<double>(); }
  /// As Python has it, True and False are numbers too.
  bool is_number() const { return is_bool() || is_integer() || is_float(); }
  bool is_string() const { return is<Text>(); }
  bool is_list() const { return is<ListRef>(); }
  bool is_dict() const { return is<DictRef>(); }
  bool is_namespace() const { return is<NamespaceRef>(); }
  bool is_callable() const { return is<CallableRef>(); }

  const std::string& string() const { return *std::get<Text>(held_); }
  const List& list() const { return std::get<ListRef>(held_)->items; }
  const Dict& dict() const { return std::get<DictRef>(held_)->items; }
  Namespace& members() const { return *std::get<NamespaceRef>(held_); }
  const Callable& callable() const { return *std::get<CallableRef>(held_); }
  /// Of an integer or a truth value. Throws Error naming `what` otherwise.
  int64_t integer(std::string_view what) const;
  /// Of any number. Throws Error naming `what` otherwise.
  double number(std::string_view what) const;

  bool truth() const;
  /// "str", "int", "dict", ...: the type's name in messages.
  std::string type() const;
  /// The value of a key of a dict; nullptr where there is none.
  const Value* find(std::string_view key) const;

 private:
  using Text = std::shared_ptr<const std::string>;
  template <typename Items>
  struct Container {
    Items items;
    int depth;  // of containers in containers
  };
  using ListRef = std::shared_ptr<const Container<List>>;
  using DictRef = std::shared_ptr<const Container<Dict>>;
  using NamespaceRef = std::shared_ptr<Namespace>;
  using CallableRef = std::shared_ptr<const Callable>;

  template <typename T>
  bool is() const {
    return std::holds_alternative<T>(held_);
  }
  int depth() const;

  std::variant<Undefined, None, bool, int64_t, double, Text, ListRef, DictRef, NamespaceRef, CallableRef> held_;
};

/// a == b; numbers compare by value, whatever their type.
bool equal(const Value& a, const Value& b, Budget& budget);
/// -1, 0, 1 for two numbers, two strings or two lists. Throws Error for what has no order.
int compare(const Value& a, const Value& b, Budget& budget);
/// Whether `container` holds `item`: an element, a key, a part of a text.
bool contains(const Value& container, const Value& item, Budget& budget);

/// What {{ value }} prints: Python's str().
std::string to_text(const Value& value, Budget& budget);
/// Python's float(): shortest form that reads back, with a point or an exponent.
std::string float_text(double value);

/// Python's json.dumps(value, ensure_ascii=False, indent=indent), as transformers gives templates. indent < 0: one
/// line.
std::string to_json(const Value& value, int64_t indent, Budget& budget);

}  // namespace seqloom::jinja
