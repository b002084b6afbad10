#include <charconv>

#include "io/jinja/parser.h"
#include "io/json.h"

namespace seqloom::jinja {

using Kind = Expression::Kind;

bool TokenReader::skip_operator(std::string_view text) {
  if (!is_operator(text)) return false;
  take();
  return true;
}

bool TokenReader::skip_name(std::string_view text) {
  if (!is_name(text)) return false;
  take();
  return true;
}

void TokenReader::expect_operator(std::string_view text) {
  if (!skip_operator(text)) error("expected '{}', found {}", text, found());
}

std::string TokenReader::expect_name(std::string_view what) {
  if (!is(Token::Kind::kName)) error("expected {}, found {}", what, found());
  return take().text;
}

std::string TokenReader::found() const {
  switch (peek().kind) {
    case Token::Kind::kPrintEnd:
      return "'}}'";
    case Token::Kind::kTagEnd:
      return "'%}'";
    case Token::Kind::kEnd:
      return "the end";
    default:
      return "'" + printable(peek().text, 40) + "'";
  }
}

Expression* TokenReader::make_expression(Kind kind, int line) {
  syntax_.expressions.push_back(std::make_unique<Expression>());
  Expression* node = syntax_.expressions.back().get();
  node->kind = kind;
  node->line = line;
  return node;
}

Statement* TokenReader::make_statement(Statement::Kind kind, int line) {
  syntax_.statements.push_back(std::make_unique<Statement>());
  Statement* node = syntax_.statements.back().get();
  node->kind = kind;
  node->line = line;
  return node;
}

Expr ExpressionParser::binary(const std::string& text, Expr left, Expr right, int line) {
  Expression* node = make_expression(Kind::kBinary, line);
  node->text = text;
  node->parts = {left, right};
  return node;
}

Expr ExpressionParser::parse_tuple() {
  const int at = line();
  Expr first = parse_expression();
  if (!is_operator(",")) return first;
  Expression* list = make_expression(Kind::kList, at);
  list->parts = {first};
  while (skip_operator(",")) {
    if (is(Token::Kind::kTagEnd) || is(Token::Kind::kPrintEnd) || is_operator(")") || is_operator("=")) break;
    list->parts.push_back(parse_expression());
  }
  return list;
}

Expr ExpressionParser::parse_condition() {
  const Level level(*this);
  Expr value = parse_or();
  while (is_name("if")) {
    Expression* node = make_expression(Kind::kCondition, take().line);
    Expr condition = parse_or();
    Expr otherwise = skip_name("else") ? parse_condition() : nullptr;
    node->parts = {value, condition, otherwise};
    value = node;
  }
  return value;
}

Expr ExpressionParser::parse_or() {
  Expr left = parse_and();
  while (is_name("or")) {
    const int at = take().line;
    left = binary("or", left, parse_and(), at);
  }
  return left;
}

Expr ExpressionParser::parse_and() {
  Expr left = parse_not();
  while (is_name("and")) {
    const int at = take().line;
    left = binary("and", left, parse_not(), at);
  }
  return left;
}

Expr ExpressionParser::parse_not() {
  if (!is_name("not")) return parse_compare();
  const Level level(*this);
  Expression* node = make_expression(Kind::kUnary, take().line);
  node->text = "not";
  node->parts = {parse_not()};
  return node;
}

Expr ExpressionParser::parse_compare() {
  const int at = line();
  Expr first = parse_sum();
  std::vector<Expr> parts = {first};
  std::vector<std::string> operators;
  while (true) {
    if (is(Token::Kind::kOperator) &&
        (peek().text == "==" || peek().text == "!=" || peek().text.front() == '<' || peek().text.front() == '>')) {
      operators.push_back(take().text);
    } else if (skip_name("in")) {
      operators.emplace_back("in");
    } else if (is_name("not") && peek_second().kind == Token::Kind::kName && peek_second().text == "in") {
      take();
      take();
      operators.emplace_back("not in");
    } else {
      break;
    }
    parts.push_back(parse_sum());
  }
  if (operators.empty()) return first;
  Expression* node = make_expression(Kind::kCompare, at);
  node->parts = std::move(parts);
  node->operators = std::move(operators);
  return node;
}

Expr ExpressionParser::parse_sum() {
  Expr left = parse_concat();
  while (is_operator("+") || is_operator("-")) {
    const Token token = take();
    left = binary(token.text, left, parse_concat(), token.line);
  }
  return left;
}

Expr ExpressionParser::parse_concat() {
  Expr left = parse_product();
  while (is_operator("~")) {
    const Token token = take();
    left = binary(token.text, left, parse_product(), token.line);
  }
  return left;
}

Expr ExpressionParser::parse_product() {
  Expr left = parse_power();
  while (is_operator("*") || is_operator("/") || is_operator("//") || is_operator("%")) {
    const Token token = take();
    left = binary(token.text, left, parse_power(), token.line);
  }
  return left;
}

Expr ExpressionParser::parse_power() {
  Expr left = parse_unary(true);
  while (is_operator("**")) {
    const Token token = take();
    left = binary(token.text, left, parse_unary(true), token.line);
  }
  return left;
}

Expr ExpressionParser::parse_unary(bool with_filters) {
  const Level level(*this);
  Expr value;
  if (is_operator("-") || is_operator("+")) {
    const Token token = take();
    Expression* node = make_expression(Kind::kUnary, token.line);
    node->text = token.text;
    node->parts = {parse_unary(false)};
    value = node;
  } else {
    value = parse_postfix(parse_primary());
  }
  return with_filters ? parse_filters(value) : value;
}

Expr ExpressionParser::parse_number() {
  const Token token = take();
  Expression* node = make_expression(Kind::kLiteral, token.line);
  if (token.kind == Token::Kind::kFloat) {
    double value = 0;
    std::from_chars(token.text.data(), token.text.data() + token.text.size(), value);
    node->value = value;
  } else {
    int64_t value = 0;
    const auto result = std::from_chars(token.text.data(), token.text.data() + token.text.size(), value);
    if (result.ec != std::errc()) error("{} is too large", token.text);
    node->value = value;
  }
  return node;
}

Expr ExpressionParser::parse_primary() {
  const int at = line();
  if (is(Token::Kind::kInteger) || is(Token::Kind::kFloat)) return parse_number();
  if (is(Token::Kind::kString)) {
    std::string text = take().text;
    while (is(Token::Kind::kString)) text += take().text;
    Expression* node = make_expression(Kind::kLiteral, at);
    node->value = std::move(text);
    return node;
  }
  if (is_operator("[")) return parse_list();
  if (is_operator("{")) return parse_dict();
  if (skip_operator("(")) {
    if (skip_operator(")")) return make_expression(Kind::kList, at);
    Expr inner = parse_tuple();
    expect_operator(")");
    return inner;
  }
  const std::string name = expect_name("a value");
  const bool is_true = name == "true" || name == "True", is_false = name == "false" || name == "False";
  const bool is_literal = is_true || is_false || name == "none" || name == "None";
  Expression* node = make_expression(is_literal ? Kind::kLiteral : Kind::kName, at);
  if (is_true || is_false)
    node->value = is_true;
  else if (is_literal)
    node->value = Value::None{};
  else
    node->text = name;
  return node;
}

Expr ExpressionParser::parse_list() {
  Expression* node = make_expression(Kind::kList, take().line);
  while (!is_operator("]")) {
    node->parts.push_back(parse_expression());
    if (!skip_operator(",")) break;
  }
  expect_operator("]");
  return node;
}

Expr ExpressionParser::parse_dict() {
  Expression* node = make_expression(Kind::kDict, take().line);
  while (!is_operator("}")) {
    node->parts.push_back(parse_expression());
    expect_operator(":");
    node->parts.push_back(parse_expression());
    if (!skip_operator(",")) break;
  }
  expect_operator("}");
  return node;
}

Expr ExpressionParser::parse_postfix(Expr value) {
  while (true) {
    const int at = line();
    if (skip_operator(".")) {
      if (is(Token::Kind::kInteger)) {
        Expression* node = make_expression(Kind::kSubscript, at);
        node->parts = {value, parse_number()};
        value = node;
      } else {
        Expression* node = make_expression(Kind::kAttribute, at);
        node->text = expect_name("the name of an attribute");
        node->parts = {value};
        value = node;
      }
    } else if (skip_operator("[")) {
      value = parse_subscript(value, at);
    } else if (is_operator("(")) {
      Expression* node = make_expression(Kind::kCall, at);
      node->parts = {value};
      node->call = parse_call();
      value = node;
    } else {
      return value;
    }
  }
}

Expr ExpressionParser::parse_subscript(Expr value, int line) {
  std::vector<Expr> parts = {value, nullptr};
  bool slice = false;
  if (!is_operator(":")) parts[1] = parse_expression();
  while (parts.size() < 4 && skip_operator(":")) {
    slice = true;
    parts.push_back(is_operator(":") || is_operator("]") ? nullptr : parse_expression());
  }
  expect_operator("]");
  parts.resize(slice ? 4 : 2, nullptr);
  Expression* node = make_expression(slice ? Kind::kSlice : Kind::kSubscript, line);
  node->parts = std::move(parts);
  return node;
}

Call ExpressionParser::parse_call() {
  Call call;
  expect_operator("(");
  while (!is_operator(")")) {
    const bool named =
        is(Token::Kind::kName) && peek_second().kind == Token::Kind::kOperator && peek_second().text == "=";
    if (named) {
      std::string name = take().text;
      take();
      call.named.emplace_back(std::move(name), parse_expression());
    } else {
      if (is_operator("*") || is_operator("**")) error("'{}' before an argument is not supported", peek().text);
      if (!call.named.empty()) error("an argument without a name stands behind one with a name");
      call.positional.push_back(parse_expression());
    }
    if (!skip_operator(",")) break;
  }
  expect_operator(")");
  return call;
}

Expr ExpressionParser::parse_filters(Expr value) {
  while (true) {
    if (is_operator("|")) {
      Expression* node = make_expression(Kind::kFilter, take().line);
      node->text = expect_name("the name of a filter");
      node->parts = {value};
      if (is_operator("(")) node->call = parse_call();
      value = node;
    } else if (is_name("is")) {
      value = parse_test(value);
    } else if (is_operator("(")) {
      Expression* node = make_expression(Kind::kCall, line());
      node->parts = {value};
      node->call = parse_call();
      value = node;
    } else {
      return value;
    }
  }
}

Expr ExpressionParser::parse_test(Expr value) {
  const int at = take().line;
  const bool negated = skip_name("not");
  Expression* node = make_expression(Kind::kTest, at);
  node->text = expect_name("the name of a test");
  node->parts = {value};
  const bool bare_argument = is(Token::Kind::kString) || is(Token::Kind::kInteger) || is(Token::Kind::kFloat) ||
                             is_operator("[") || is_operator("{") ||
                             (is(Token::Kind::kName) && !is_name("else") && !is_name("or") && !is_name("and") &&
                              !is_name("if") && !is_name("is") && !is_name("not") && !is_name("in"));
  if (is_operator("("))
    node->call = parse_call();
  else if (bare_argument)
    node->call.positional = {parse_postfix(parse_primary())};
  if (!negated) return node;
  Expression* inverse = make_expression(Kind::kUnary, at);
  inverse->text = "not";
  inverse->parts = {node};
  return inverse;
}

std::vector<Parameter> ExpressionParser::parse_parameters() {
  std::vector<Parameter> parameters;
  expect_operator("(");
  while (!is_operator(")")) {
    Parameter parameter{expect_name("the name of a parameter"), nullptr};
    if (skip_operator("=")) parameter.fallback = parse_expression();
    parameters.push_back(std::move(parameter));
    if (!skip_operator(",")) break;
  }
  expect_operator(")");
  return parameters;
}

}  // namespace seqloom::jinja
