// Expressions.
#include "base/error.h"
#include "io/jinja/renderer.h"

namespace seqloom::jinja {

using Kind = Expression::Kind;

Value Renderer::evaluate(Expr expression) {
  if (expression == nullptr) return block_;  // the text in front of a filter block's filter
  const Level level(*this);
  budget_.spend(1);
  line_ = expression->line;
  return evaluate_kind(*expression);
}

Value Renderer::evaluate_kind(const Expression& expression) {
  const auto part = [&](size_t i) { return evaluate(expression.parts[i]); };
  const auto optional_part = [&](size_t i) { return expression.parts[i] == nullptr ? Value() : part(i); };
  switch (expression.kind) {
    case Kind::kLiteral:
      return expression.value;
    case Kind::kName:
      return lookup(expression.text);
    case Kind::kList: {
      List list;
      for (Expr element : expression.parts) list.push_back(evaluate(element));
      return list;
    }
    case Kind::kDict:
      return evaluate_dict(expression);
    case Kind::kUnary: {
      if (expression.text == "not") return !part(0).truth();
      const Value value = part(0);
      if (!value.is_number()) fail("'{}' needs a number, not {}", expression.text, value.type());
      return expression.text == "+" ? value : apply_operator("*", value, int64_t{-1}, budget_);
    }
    case Kind::kBinary:
      return evaluate_binary(expression);
    case Kind::kCompare:
      return evaluate_compare(expression);
    case Kind::kCondition:
      return part(1).truth() ? part(0) : optional_part(2);
    case Kind::kAttribute:
      return attribute(part(0), expression.text, budget_);
    case Kind::kSubscript:
      return subscript(part(0), part(1), budget_);
    case Kind::kSlice:
      return slice(part(0), optional_part(1), optional_part(2), optional_part(3), budget_);
    case Kind::kCall:
      return evaluate_call(expression);
    case Kind::kFilter: {
      const Value value = part(0);
      return apply_filter(expression.text, value, evaluate_arguments(expression.call), budget_);
    }
    case Kind::kTest: {
      const Value value = part(0);
      return apply_test(expression.text, value, evaluate_arguments(expression.call), budget_);
    }
  }
  return {};
}

Value Renderer::lookup(const std::string& name) {
  for (const Scope* scope = scope_; scope != nullptr; scope = scope->parent) {
    budget_.spend(1 + scope->variables.size() / 8);
    for (const auto& [known, value] : scope->variables) {
      if (known == name) return value;
    }
  }
  return Value::undefined(name);
}

Value Renderer::evaluate_binary(const Expression& expression) {
  Value left = evaluate(expression.parts[0]);
  if (expression.text == "and") return left.truth() ? evaluate(expression.parts[1]) : left;
  if (expression.text == "or") return left.truth() ? left : evaluate(expression.parts[1]);
  return apply_operator(expression.text, left, evaluate(expression.parts[1]), budget_);
}

Value Renderer::evaluate_compare(const Expression& expression) {
  const auto holds = [&](const std::string& op, const Value& a, const Value& b) {
    if (op == "==") return equal(a, b, budget_);
    if (op == "!=") return !equal(a, b, budget_);
    if (op == "in") return contains(b, a, budget_);
    if (op == "not in") return !contains(b, a, budget_);
    const int order = compare(a, b, budget_);
    if (op == "<") return order < 0;
    if (op == "<=") return order <= 0;
    return op == ">" ? order > 0 : order >= 0;
  };
  Value left = evaluate(expression.parts[0]);
  for (size_t i = 0; i < expression.operators.size(); ++i) {
    Value right = evaluate(expression.parts[i + 1]);
    if (!holds(expression.operators[i], left, right)) return false;
    left = std::move(right);
  }
  return true;
}

Value Renderer::evaluate_dict(const Expression& expression) {
  Dict dict;
  for (size_t i = 0; i < expression.parts.size(); i += 2) {
    const Value key = evaluate(expression.parts[i]);
    if (!key.is_string()) fail("the keys of a dict must be texts here, not {}", key.type());
    Value value = evaluate(expression.parts[i + 1]);
    budget_.spend(1 + dict.size());
    bool known = false;
    for (auto& [name, place] : dict) {
      if (name == key.string()) {
        place = value;
        known = true;
      }
    }
    if (!known) dict.emplace_back(key.string(), std::move(value));
  }
  return dict;
}

Arguments Renderer::evaluate_arguments(const Call& call) {
  Arguments arguments;
  for (Expr argument : call.positional) arguments.positional.push_back(evaluate(argument));
  for (const auto& [name, argument] : call.named) arguments.named.emplace_back(name, evaluate(argument));
  return arguments;
}

Value Renderer::evaluate_call(const Expression& expression) {
  const Value callee = evaluate(expression.parts[0]);
  if (!callee.is_callable()) fail("{} cannot be called", callee.type());
  const int line = expression.line;
  const Arguments arguments = evaluate_arguments(expression.call);
  line_ = line;
  Value result = callee.callable().call(arguments);
  line_ = line;
  return result;
}

}  // namespace seqloom::jinja
