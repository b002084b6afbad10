// How values are written: Python's str(), repr() and json.dumps().
#include <cmath>

#include "base/error.h"
#include "io/jinja/value.h"
#include "io/utf8.h"

namespace seqloom::jinja {
namespace {

/// Collects text and charges for it.
struct Writer {
  Budget& budget;
  std::string text;
  void put(std::string_view piece) {
    budget.spend(piece.size() + 1);
    text += piece;
  }
};

/// Python's repr() of a text: in single quotes unless only those occur inside.
std::string quoted(const std::string& text) {
  const bool has_single = text.find('\'') != std::string::npos, has_double = text.find('"') != std::string::npos;
  const char quote = has_single && !has_double ? '"' : '\'';
  std::string result(1, quote);
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '\n')
      result += "\\n";
    else if (c == '\r')
      result += "\\r";
    else if (c == '\t')
      result += "\\t";
    else if (c == '\\' || c == quote)
      result += {'\\', c};
    else if (byte < 0x20 || byte == 0x7f)
      result += fmt::format("\\x{:02x}", byte);
    else
      result += c;
  }
  return result + quote;
}

std::string json_string(const std::string& text) {
  std::string result = "\"";
  for (const char c : text) {
    switch (c) {
      case '"':
        result += "\\\"";
        break;
      case '\\':
        result += "\\\\";
        break;
      case '\n':
        result += "\\n";
        break;
      case '\r':
        result += "\\r";
        break;
      case '\t':
        result += "\\t";
        break;
      case '\b':
        result += "\\b";
        break;
      case '\f':
        result += "\\f";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20)
          result += fmt::format("\\u{:04x}", static_cast<unsigned char>(c));
        else
          result += c;
    }
  }
  return result + '"';
}

void write_repr(const Value& value, Writer& out) {
  if (value.is_string()) return out.put(quoted(value.string()));
  if (value.is_list()) {
    out.put("[");
    for (size_t i = 0; i < value.list().size(); ++i) {
      if (i > 0) out.put(", ");
      write_repr(value.list()[i], out);
    }
    return out.put("]");
  }
  if (value.is_dict()) {
    out.put("{");
    for (size_t i = 0; i < value.dict().size(); ++i) {
      if (i > 0) out.put(", ");
      out.put(quoted(value.dict()[i].first) + ": ");
      write_repr(value.dict()[i].second, out);
    }
    return out.put("}");
  }
  if (value.is_undefined()) return out.put("Undefined");
  out.put(to_text(value, out.budget));
}

/// json.dumps of lists and dicts, on one line or indented.
class JsonWriter {
 public:
  JsonWriter(int64_t indent, Writer& out) : indent_(indent), out_(out) {}

  void write(const Value& value) {
    if (value.is_none()) return out_.put("null");
    if (value.is_bool()) return out_.put(value.truth() ? "true" : "false");
    if (value.is_integer() || value.is_float()) return out_.put(json_number(value));
    if (value.is_string()) return out_.put(json_string(value.string()));
    if (value.is_list()) {
      return write_items('[', value.list(), ']', [&](const Value& item) { write(item); });
    }
    if (value.is_dict()) {
      return write_items('{', value.dict(), '}', [&](const auto& item) {
        out_.put(json_string(item.first) + ": ");
        write(item.second);
      });
    }
    fail("tojson: {} is not JSON", value.type());
  }

 private:
  std::string json_number(const Value& value) {
    if (value.is_integer()) return to_text(value, out_.budget);
    const double number = value.number("tojson");
    if (std::isnan(number)) return "NaN";
    if (std::isinf(number)) return number > 0 ? "Infinity" : "-Infinity";
    return float_text(number);
  }
  void new_line() {
    if (indent_ >= 0) out_.put("\n" + std::string(static_cast<size_t>(indent_ * depth_), ' '));
  }
  template <typename Items, typename Write>
  void write_items(char open, const Items& items, char close, Write write_item) {
    out_.put({&open, 1});
    ++depth_;
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) out_.put(indent_ >= 0 ? "," : ", ");
      new_line();
      write_item(items[i]);
    }
    --depth_;
    if (!items.empty()) new_line();
    out_.put({&close, 1});
  }

  int64_t indent_, depth_ = 0;
  Writer& out_;
};

}  // namespace

std::string float_text(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  std::string text = fmt::format("{}", value);
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

std::string to_text(const Value& value, Budget& budget) {
  if (value.is_undefined()) return "";
  if (value.is_none()) return "None";
  if (value.is_bool()) return value.truth() ? "True" : "False";
  if (value.is_integer()) return std::to_string(value.integer("a number"));
  if (value.is_float()) return float_text(value.number("a number"));
  if (value.is_namespace()) return "<Namespace>";
  if (value.is_callable()) return "<function " + value.callable().name + ">";
  if (value.is_string()) {
    budget.spend(value.string().size());
    return value.string();
  }
  Writer out{budget, ""};
  write_repr(value, out);
  return std::move(out.text);
}

std::string to_json(const Value& value, int64_t indent, Budget& budget) {
  if (indent > 64) fail("tojson: indent = {} is more than 64", indent);
  Writer out{budget, ""};
  JsonWriter(indent, out).write(value);
  return std::move(out.text);
}

}  // namespace seqloom::jinja
