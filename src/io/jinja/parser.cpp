// Statements: what stands between the texts of a template.
#include "io/jinja/parser.h"

#include <algorithm>

namespace seqloom::jinja {
namespace {

using Kind = Statement::Kind;

class Parser final : public ExpressionParser {
 public:
  using ExpressionParser::ExpressionParser;

  Body run() {
    Body body = parse_body({});
    if (!is(Token::Kind::kEnd)) error("'{}' has no beginning", peek().text);
    return body;
  }

 private:
  /// Statements up to a tag whose name is one of `ends`, which is left to be read: its name is the present token.
  Body parse_body(const std::vector<std::string_view>& ends) {
    const Level level(*this);
    Body body;
    while (!is(Token::Kind::kEnd)) {
      const int at = line();
      const Token token = take();
      if (token.kind == Token::Kind::kText) {
        Statement* text = make_statement(Kind::kText, at);
        text->text = token.text;
        body.push_back(text);
      } else if (token.kind == Token::Kind::kPrint) {
        Statement* print = make_statement(Kind::kPrint, at);
        print->expression = parse_tuple();
        if (!is(Token::Kind::kPrintEnd)) error("expected '}}}}', found {}", found());
        take();
        body.push_back(print);
      } else {
        if (!is(Token::Kind::kName)) error("expected the name of a tag, found {}", found());
        if (std::find(ends.begin(), ends.end(), peek().text) != ends.end()) return body;
        body.push_back(parse_tag());
      }
    }
    if (!ends.empty()) error("the template ends where '{}' is missing", ends.back());
    return body;
  }

  void end_tag() {
    if (!is(Token::Kind::kTagEnd)) error("expected '%}}', found {}", found());
    take();
  }
  Body parse_body_and_end(std::string_view end) {
    end_tag();
    Body body = parse_body({end});
    take();
    end_tag();
    return body;
  }

  Statement* parse_tag() {
    const int at = line();
    const std::string name = peek().text;
    if (name.starts_with("end") || name == "else" || name == "elif") error("'{}' has no beginning", name);
    take();
    if (name == "if") return parse_if(at);
    if (name == "for") return parse_for(at);
    if (name == "set") return parse_set(at);
    if (name == "macro") return parse_macro(at);
    if (name == "call") return parse_call_block(at);
    if (name == "filter") return parse_filter_block(at);
    if (name == "with") return parse_with(at);
    if (name == "generation") {
      Statement* scope = make_statement(Kind::kScope, at);
      scope->body = parse_body_and_end("endgeneration");
      return scope;
    }
    if (name == "break" || name == "continue") {
      if (loops_ == 0) error("'{}' stands outside a loop", name);
      end_tag();
      return make_statement(name == "break" ? Kind::kBreak : Kind::kContinue, at);
    }
    error("the tag '{}' is not supported in a chat template", name);
  }

  Statement* parse_if(int at) {
    Statement* node = make_statement(Kind::kIf, at);
    Expr condition = parse_tuple();
    while (true) {
      end_tag();
      Body body = parse_body({"elif", "else", "endif"});
      node->branches.emplace_back(condition, std::move(body));
      const std::string name = take().text;
      if (name == "endif") break;
      condition = name == "elif" ? parse_tuple() : nullptr;
      if (name == "else") {
        node->branches.emplace_back(nullptr, parse_body_and_end("endif"));
        return node;
      }
    }
    end_tag();
    return node;
  }

  std::vector<std::string> parse_targets() {
    const bool bracketed = skip_operator("(");
    std::vector<std::string> names = {expect_name("the name of a variable")};
    while (skip_operator(",")) names.push_back(expect_name("the name of a variable"));
    if (bracketed) expect_operator(")");
    return names;
  }

  Statement* parse_for(int at) {
    Statement* node = make_statement(Kind::kFor, at);
    node->names = parse_targets();
    if (!skip_name("in")) error("expected 'in', found {}", found());
    node->expression = parse_or();
    if (skip_name("if")) node->condition = parse_expression();
    if (is_name("recursive")) error("'recursive' loops are not supported");
    end_tag();
    ++loops_;
    node->body = parse_body({"else", "endfor"});
    --loops_;
    if (take().text == "else") {
      node->otherwise = parse_body_and_end("endfor");
    } else {
      end_tag();
    }
    return node;
  }

  Statement* parse_set(int at) {
    Statement* node = make_statement(Kind::kSet, at);
    node->names = parse_targets();
    if (skip_operator(".")) node->attribute = expect_name("the name of an attribute");
    if (skip_operator("=")) {
      node->expression = parse_tuple();
      end_tag();
      return node;
    }
    if (node->names.size() > 1 || !node->attribute.empty()) error("expected '=', found {}", found());
    node->kind = Kind::kSetBlock;
    if (is_operator("|")) node->expression = parse_filters(nullptr);
    node->body = parse_body_and_end("endset");
    return node;
  }

  Statement* parse_macro(int at) {
    Statement* node = make_statement(Kind::kMacro, at);
    node->text = expect_name("the name of a macro");
    node->parameters = parse_parameters();
    const int outer = std::exchange(loops_, 0);
    node->body = parse_body_and_end("endmacro");
    loops_ = outer;
    return node;
  }

  Statement* parse_call_block(int at) {
    Statement* node = make_statement(Kind::kCallBlock, at);
    if (is_operator("(")) node->parameters = parse_parameters();
    node->expression = parse_expression();
    if (node->expression->kind != Expression::Kind::kCall) error("'call' needs a call of a macro");
    const int outer = std::exchange(loops_, 0);
    node->body = parse_body_and_end("endcall");
    loops_ = outer;
    return node;
  }

  Statement* parse_filter_block(int at) {
    Statement* node = make_statement(Kind::kFilter, at);
    Expression* first = make_expression(Expression::Kind::kFilter, at);
    first->text = expect_name("the name of a filter");
    first->parts = {nullptr};
    if (is_operator("(")) error("arguments of a filter block are not supported");
    node->expression = parse_filters(first);
    node->body = parse_body_and_end("endfilter");
    return node;
  }

  Statement* parse_with(int at) {
    Statement* scope = make_statement(Kind::kScope, at);
    while (!is(Token::Kind::kTagEnd)) {
      Statement* set = make_statement(Kind::kSet, line());
      set->names = {expect_name("the name of a variable")};
      expect_operator("=");
      set->expression = parse_expression();
      scope->body.push_back(set);
      if (!skip_operator(",")) break;
    }
    Body inner = parse_body_and_end("endwith");
    scope->body.insert(scope->body.end(), inner.begin(), inner.end());
    return scope;
  }

  int loops_ = 0;  // that enclose the present place
};

}  // namespace

Syntax parse(std::string_view source) {
  Syntax syntax;
  Parser parser(tokenize(source), syntax);
  syntax.body = parser.run();
  return syntax;
}

}  // namespace seqloom::jinja
