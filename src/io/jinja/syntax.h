#pragma once
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "io/jinja/value.h"

namespace seqloom::jinja {

struct Expression;
using Expr = const Expression*;

struct Call {
  std::vector<Expr> positional;
  std::vector<std::pair<std::string, Expr>> named;
};

/// A node of an expression. `parts` are its operands in order; a missing one is nullptr.
struct Expression {
  enum class Kind {
    kLiteral,    // value
    kName,       // text
    kList,       // parts; also a tuple
    kDict,       // parts: key, value, key, value
    kUnary,      // text: "-", "+", "not"
    kBinary,     // text: "+", "and", "in", ...
    kCompare,    // a < b <= c: parts a, b, c and operators
    kCondition,  // parts: then, if, else
    kAttribute,  // parts[0].text
    kSubscript,  // parts[0][parts[1]]
    kSlice,      // parts[0][parts[1]:parts[2]:parts[3]]
    kCall,       // parts[0](call)
    kFilter,     // parts[0] | text(call); parts[0] is nullptr for the text of a filter block
    kTest,       // parts[0] is text(call)
  } kind;
  int line;
  std::string text;
  std::vector<Expr> parts;
  std::vector<std::string> operators;
  Call call;
  Value value;
};

struct Statement;
using Body = std::vector<const Statement*>;

struct Parameter {
  std::string name;
  Expr fallback;  // nullptr: must be given
};

/// A node of the template.
struct Statement {
  enum class Kind {
    kText,       // text
    kPrint,      // expression
    kIf,         // branches; the last may have no condition
    kFor,        // names, expression, condition (a filter), body, otherwise
    kSet,        // names, or name.attribute, from expression
    kSetBlock,   // names[0] from body, through the filter `expression` where there is one
    kFilter,     // body through the filter `expression`
    kMacro,      // text, parameters, body
    kScope,      // body in a scope of its own: with, generation
    kCallBlock,  // expression is the call, body and parameters its caller()
    kBreak,
    kContinue,
  } kind;
  int line;
  std::string text, attribute;
  std::vector<std::string> names;
  Expr expression = nullptr, condition = nullptr;
  Body body, otherwise;
  std::vector<std::pair<Expr, Body>> branches;
  std::vector<Parameter> parameters;
};

/// A parsed template. Nodes live here and point to each other, so that a long chain of them takes no stack to destroy.
struct Syntax {
  Body body;
  std::vector<std::unique_ptr<Expression>> expressions;
  std::vector<std::unique_ptr<Statement>> statements;
};

/// Throws Error "line N: ..." for what is not Jinja or not of the part of it that chat templates use.
Syntax parse(std::string_view source);

}  // namespace seqloom::jinja
