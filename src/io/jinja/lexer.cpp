#include "io/jinja/lexer.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "base/error.h"
#include "io/json.h"

namespace seqloom::jinja {
namespace {

bool is_blank(char c) {
  return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\f' || c == '\v';
}
bool is_digit(char c) {
  return c >= '0' && c <= '9';
}
bool is_name_start(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

/// With line breaks as "\n", without one at the end.
std::string normalized(std::string_view source) {
  std::string text;
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      text += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      text += source[i];
    }
  }
  if (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

void append_utf8(std::string& text, uint32_t code) {
  if (code < 0x80) {
    text += static_cast<char>(code);
  } else if (code < 0x800) {
    text += static_cast<char>(0xc0 | code >> 6);
    text += static_cast<char>(0x80 | (code & 0x3f));
  } else {
    text += static_cast<char>(0xe0 | code >> 12);
    text += static_cast<char>(0x80 | (code >> 6 & 0x3f));
    text += static_cast<char>(0x80 | (code & 0x3f));
  }
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(normalized(source)) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) {
      const size_t open = next_delimiter();
      if (open == std::string::npos) {
        add_text(source_.substr(at_));
        break;
      }
      read_delimited(open);
    }
    add(Token::Kind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  template <typename... Args>
  [[noreturn]] void error(fmt::format_string<Args...> format, Args&&... args) const {
    fail("line {}: {}", line_, fmt::format(format, std::forward<Args>(args)...));
  }

  bool starts(std::string_view what) const { return source_.compare(at_, what.size(), what) == 0; }
  void add(Token::Kind kind, std::string text) { tokens_.push_back({kind, std::move(text), line_}); }
  void add_text(std::string text) {
    if (!text.empty()) add(Token::Kind::kText, std::move(text));
  }
  /// Moves on, counting lines.
  void advance(size_t to) {
    line_ += static_cast<int>(
        std::count(source_.begin() + static_cast<int64_t>(at_), source_.begin() + static_cast<int64_t>(to), '\n'));
    at_ = to;
  }

  size_t next_delimiter() const {
    for (size_t i = source_.find('{', at_); i != std::string::npos && i + 1 < source_.size();
         i = source_.find('{', i + 1)) {
      if (source_[i + 1] == '{' || source_[i + 1] == '%' || source_[i + 1] == '#') return i;
    }
    return std::string::npos;
  }

  /// The text before a delimiter at `open`, shortened by what the delimiter takes along.
  std::string text_before(size_t open, char sign) const {
    std::string text = source_.substr(at_, open - at_);
    if (sign == '-') {
      while (!text.empty() && is_blank(text.back())) text.pop_back();
    } else if (sign != '+' && source_[open + 1] != '{') {
      const size_t line = text.rfind('\n') + 1;  // 0 where there is none
      const bool only_blanks = std::all_of(text.begin() + static_cast<int64_t>(line), text.end(), is_blank);
      if (only_blanks && (line > 0 || line_begins_)) text.resize(line);
    }
    return text;
  }

  void read_delimited(size_t open) {
    const char kind = source_[open + 1];
    const char next = open + 2 < source_.size() ? source_[open + 2] : '\0';
    const char sign = next == '-' || next == '+' ? next : '\0';
    add_text(text_before(open, sign));
    advance(open + (sign == '\0' ? 2 : 3));
    if (kind == '#') return skip_comment();
    if (kind == '%' && read_raw()) return;
    add(kind == '%' ? Token::Kind::kTag : Token::Kind::kPrint, "");
    read_inside(kind == '%');
  }

  void skip_comment() {
    const size_t close = source_.find("#}", at_);
    if (close == std::string::npos) error("a comment '{{#' is not closed");
    const char sign = close > at_ ? source_[close - 1] : '\0';
    advance(close + 2);
    after_close(sign, /*trims=*/true);
  }

  /// What a closing delimiter takes along: with '-' all white space, else, for tags and comments, one line break.
  void after_close(char sign, bool trims) {
    size_t end = at_;
    if (sign == '-') {
      while (end < source_.size() && is_blank(source_[end])) ++end;
    } else if (trims && sign != '+' && end < source_.size() && source_[end] == '\n') {
      ++end;
    }
    advance(end);
    line_begins_ = source_[end - 1] == '\n';
  }

  /// {% raw %} ... {% endraw %}, where at_ is behind "{%". False when it is another tag.
  bool read_raw() {
    const size_t begin = at_;
    skip_blanks();
    if (!starts("raw")) return rewind(begin);
    advance(at_ + 3);
    skip_blanks();
    const char sign = starts("-") ? '-' : '\0';
    if (sign == '-') advance(at_ + 1);
    if (!starts("%}")) return rewind(begin);
    advance(at_ + 2);
    after_close(sign, /*trims=*/false);
    for (size_t open = source_.find("{%", at_); open != std::string::npos; open = source_.find("{%", open + 2)) {
      if (read_end_of_raw(open)) return true;
    }
    error("'raw' is not closed by 'endraw'");
  }
  bool rewind(size_t to) {
    line_ -= static_cast<int>(
        std::count(source_.begin() + static_cast<int64_t>(to), source_.begin() + static_cast<int64_t>(at_), '\n'));
    at_ = to;
    return false;
  }
  bool read_end_of_raw(size_t open) {
    size_t i = open + 2;
    const char before = i < source_.size() ? source_[i] : '\0';
    if (before == '-' || before == '+') ++i;
    while (i < source_.size() && is_blank(source_[i])) ++i;
    if (source_.compare(i, 6, "endraw") != 0) return false;
    i += 6;
    while (i < source_.size() && is_blank(source_[i])) ++i;
    const char sign = i < source_.size() && (source_[i] == '-' || source_[i] == '+') ? source_[i++] : '\0';
    if (source_.compare(i, 2, "%}") != 0) return false;
    add_text(text_before(open, before));
    advance(i + 2);
    after_close(sign, /*trims=*/true);
    return true;
  }

  void skip_blanks() {
    size_t end = at_;
    while (end < source_.size() && is_blank(source_[end])) ++end;
    advance(end);
  }

  /// The tokens up to the closing delimiter; "}}" inside brackets closes brackets.
  void read_inside(bool tag) {
    const std::string close = tag ? "%}" : "}}";
    std::string brackets;
    while (true) {
      skip_blanks();
      if (at_ >= source_.size()) error("'{}' is not closed by '{}'", tag ? "{%" : "{{", close);
      if (brackets.empty()) {
        const char sign = starts("-") || (tag && starts("+")) ? source_[at_] : '\0';
        if (source_.compare(at_ + (sign == '\0' ? 0 : 1), 2, close) == 0) {
          add(tag ? Token::Kind::kTagEnd : Token::Kind::kPrintEnd, "");
          advance(at_ + (sign == '\0' ? 2 : 3));
          return after_close(sign, tag);
        }
      }
      read_token(brackets);
    }
  }

  void read_token(std::string& brackets) {
    const char c = source_[at_];
    if (is_name_start(c)) {
      size_t end = at_;
      while (end < source_.size() && (is_name_start(source_[end]) || is_digit(source_[end]))) ++end;
      add(Token::Kind::kName, source_.substr(at_, end - at_));
      return advance(end);
    }
    if (is_digit(c)) return read_number();
    if (c == '"' || c == '\'') return read_string(c);
    read_operator(brackets);
  }

  void read_number() {
    size_t end = at_;
    bool is_float = false;
    const auto digits = [&] {
      while (end < source_.size() && (is_digit(source_[end]) || source_[end] == '_')) ++end;
    };
    digits();
    const bool after_point = at_ > 0 && source_[at_ - 1] == '.';  // a.0.1 is two subscripts
    if (!after_point && end + 1 < source_.size() && source_[end] == '.' && is_digit(source_[end + 1])) {
      is_float = true;
      ++end;
      digits();
    }
    if (!after_point && end < source_.size() && (source_[end] == 'e' || source_[end] == 'E')) {
      const size_t sign = end + 1 < source_.size() && (source_[end + 1] == '+' || source_[end + 1] == '-') ? 1 : 0;
      if (end + 1 + sign < source_.size() && is_digit(source_[end + 1 + sign])) {
        is_float = true;
        end += 1 + sign;
        digits();
      }
    }
    std::string text = source_.substr(at_, end - at_);
    std::erase(text, '_');
    add(is_float ? Token::Kind::kFloat : Token::Kind::kInteger, std::move(text));
    advance(end);
  }

  void read_string(char quote) {
    std::string text;
    size_t i = at_ + 1;
    for (; i < source_.size() && source_[i] != quote; ++i) {
      if (source_[i] != '\\' || i + 1 >= source_.size()) {
        text += source_[i];
      } else {
        ++i;
        read_escape(i, text);
      }
    }
    if (i >= source_.size()) error("a string is not closed");
    add(Token::Kind::kString, std::move(text));
    advance(i + 1);
  }

  /// The escape whose letter stands at `i`; leaves `i` on its last character.
  void read_escape(size_t& i, std::string& text) const {
    constexpr std::string_view kLetters = "ntr\\'\"0abfv";
    constexpr std::string_view kMeanings("\n\t\r\\'\"\0\a\b\f\v", 11);
    const char letter = source_[i];
    if (letter == '\n') return;  // a continued line
    if (letter == 'x' || letter == 'u') {
      const size_t digits = letter == 'x' ? 2 : 4;
      uint32_t code = 0;
      for (size_t k = 1; k <= digits; ++k) {
        const char c = i + k < source_.size() ? source_[i + k] : '\0';
        const std::string_view hex = "0123456789abcdef";
        const size_t value = hex.find(static_cast<char>(c | 0x20));
        if (c == '\0' || value == std::string_view::npos)
          error("the escape '\\{}' needs {} hexadecimal digits", letter, digits);
        code = code * 16 + static_cast<uint32_t>(value);
      }
      if (code >= 0xd800 && code < 0xe000) error("the escape '\\u{:04x}' is half of a character", code);
      append_utf8(text, code);
      i += digits;
      return;
    }
    const size_t known = kLetters.find(letter);
    if (known == std::string_view::npos) text += '\\';
    text += known == std::string_view::npos ? letter : kMeanings[known];
  }

  void read_operator(std::string& brackets) {
    constexpr std::array<std::string_view, 27> kOperators = {"==", "!=", "<=", ">=", "//", "**", "+", "-", "*",
                                                             "/",  "%",  "~",  "<",  ">",  "=",  "(", ")", "[",
                                                             "]",  "{",  "}",  ".",  ",",  ":",  "|", ";", "\0"};
    for (const auto& text : kOperators) {
      if (text[0] == '\0' || !starts(text)) continue;
      if (text == "(" || text == "[" || text == "{") brackets += text == "(" ? ')' : text == "[" ? ']' : '}';
      if (text == ")" || text == "]" || text == "}") {
        if (brackets.empty() || brackets.back() != text[0]) error("'{}' closes nothing", text);
        brackets.pop_back();
      }
      add(Token::Kind::kOperator, std::string(text));
      return advance(at_ + text.size());
    }
    error("'{}' means nothing here", printable(source_.substr(at_, 1)));
  }

  std::string source_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_begins_ = true;  // what stands before at_ ended a line
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) {
  return Lexer(source).run();
}

}  // namespace seqloom::jinja
