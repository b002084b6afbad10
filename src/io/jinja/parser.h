#pragma once
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "io/jinja/lexer.h"
#include "io/jinja/syntax.h"

namespace seqloom::jinja {

/// The tokens of a template and the nodes made of them so far.
class TokenReader {
 public:
  TokenReader(std::vector<Token> tokens, Syntax& syntax) : tokens_(std::move(tokens)), syntax_(syntax) {}

 protected:
  /// A level of nesting while it lives. Throws Error when there are too many.
  class Level {
   public:
    explicit Level(TokenReader& reader) : depth_(reader.depth_) {
      if (++depth_ > kMaxDepth) reader.error("nested deeper than {} levels", kMaxDepth);
    }
    ~Level() { --depth_; }
    Level(const Level&) = delete;
    Level& operator=(const Level&) = delete;

   private:
    int& depth_;
  };

  template <typename... Args>
  [[noreturn]] void error(fmt::format_string<Args...> format, Args&&... args) const {
    fail("line {}: {}", line(), fmt::format(format, std::forward<Args>(args)...));
  }

  const Token& peek() const { return tokens_[at_]; }
  const Token& peek_second() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  int line() const { return peek().line; }
  bool is(Token::Kind kind) const { return peek().kind == kind; }
  bool is_operator(std::string_view text) const { return is(Token::Kind::kOperator) && peek().text == text; }
  bool is_name(std::string_view text) const { return is(Token::Kind::kName) && peek().text == text; }
  Token take() { return is(Token::Kind::kEnd) ? peek() : tokens_[at_++]; }
  bool skip_operator(std::string_view text);
  bool skip_name(std::string_view text);
  void expect_operator(std::string_view text);
  std::string expect_name(std::string_view what);
  /// The present token as a message shows it.
  std::string found() const;

  Expression* make_expression(Expression::Kind kind, int line);
  Statement* make_statement(Statement::Kind kind, int line);

 private:
  static constexpr int kMaxDepth = 100;

  std::vector<Token> tokens_;
  Syntax& syntax_;
  size_t at_ = 0;
  int depth_ = 0;
};

/// Expressions by recursive descent, in Jinja's order of precedence.
class ExpressionParser : public TokenReader {
 public:
  using TokenReader::TokenReader;

 protected:
  Expr parse_expression() { return parse_condition(); }
  /// An expression, or several behind each other with commas: a list.
  Expr parse_tuple();
  /// Without "a if b else c", for the list of a loop.
  Expr parse_or();
  /// "name(args) | name ..." behind `value`.
  Expr parse_filters(Expr value);
  std::vector<Parameter> parse_parameters();

 private:
  Expr parse_condition();
  Expr parse_and();
  Expr parse_not();
  Expr parse_compare();
  Expr parse_sum();
  Expr parse_concat();
  Expr parse_product();
  Expr parse_power();
  Expr parse_unary(bool with_filters);
  Expr parse_primary();
  Expr parse_postfix(Expr value);
  Expr parse_subscript(Expr value, int line);
  Expr parse_test(Expr value);
  Expr parse_list();
  Expr parse_dict();
  Expr parse_number();
  Call parse_call();
  Expr binary(const std::string& text, Expr left, Expr right, int line);
};

}  // namespace seqloom::jinja
