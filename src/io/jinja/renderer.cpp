// Statements.
#include "io/jinja/renderer.h"

#include <algorithm>

#include "base/error.h"

namespace seqloom::jinja {
namespace {

using Kind = Statement::Kind;

/// Sets a member for as long as it lives.
template <typename T>
class Restored {
 public:
  Restored(T& place, T value) : place_(place), old_(std::exchange(place, std::move(value))) {}
  ~Restored() { place_ = std::move(old_); }
  Restored(const Restored&) = delete;
  Restored& operator=(const Restored&) = delete;

 private:
  T& place_;
  T old_;
};

Value loop_variable(const List& elements, size_t i, Budget& budget) {
  const auto at = static_cast<int64_t>(i), size = static_cast<int64_t>(elements.size());
  Namespace loop = {{"index", at + 1},
                    {"index0", at},
                    {"revindex", size - at},
                    {"revindex0", size - at - 1},
                    {"first", at == 0},
                    {"last", at + 1 == size},
                    {"length", size},
                    {"previtem", i == 0 ? Value::undefined("previtem") : elements[i - 1]},
                    {"nextitem", i + 1 == elements.size() ? Value::undefined("nextitem") : elements[i + 1]}};
  loop.emplace_back("cycle", Callable{"cycle", [at](const Arguments& arguments) {
                                        const auto& all = arguments.positional;
                                        if (all.empty()) fail("cycle: needs values");
                                        return all[static_cast<size_t>(at) % all.size()];
                                      }});
  budget.spend(loop.size());
  return Value::make_namespace(std::move(loop));
}

}  // namespace

void Scope::set(const std::string& name, Value value) {
  for (auto& [known, place] : variables) {
    if (known == name) {
      place = std::move(value);
      return;
    }
  }
  variables.emplace_back(name, std::move(value));
}

Renderer::Level::Level(Renderer& renderer) : depth_(renderer.depth_) {
  constexpr int kMaxDepth = 250;
  if (++depth_ > kMaxDepth) {
    --depth_;
    fail("expressions and macros are nested too deeply");
  }
}

std::string Renderer::run(const Value& variables) {
  root_.variables = globals(budget_);
  for (const auto& [name, value] : variables.dict()) root_.set(name, value);
  execute(syntax_.body);
  return std::move(out_);
}

void Renderer::print(const std::string& text) {
  budget_.spend(text.size());
  out_ += text;
}

std::string Renderer::rendered(const Body& body) {
  const Restored<std::string> output(out_, "");
  execute(body);
  return out_;
}

Renderer::Flow Renderer::execute(const Body& body) {
  const Level level(*this);
  for (const Statement* statement : body) {
    const Flow flow = execute(*statement);
    if (flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

Renderer::Flow Renderer::execute(const Statement& statement) {
  budget_.spend(1);
  line_ = statement.line;
  switch (statement.kind) {
    case Kind::kText:
      print(statement.text);
      break;
    case Kind::kPrint:
      print(to_text(evaluate(statement.expression), budget_));
      break;
    case Kind::kIf:
      return execute_if(statement);
    case Kind::kFor:
      execute_for(statement);
      break;
    case Kind::kSet:
      execute_set(statement);
      break;
    case Kind::kSetBlock:
    case Kind::kFilter: {
      Value text = rendered(statement.body);
      if (statement.expression != nullptr) {
        const Restored<Value> block(block_, text);
        text = evaluate(statement.expression);
      }
      if (statement.kind == Kind::kFilter)
        print(to_text(text, budget_));
      else
        scope_->set(statement.names[0], text);
      break;
    }
    case Kind::kMacro:
      scope_->set(statement.text, make_macro(statement, &root_));
      break;
    case Kind::kScope: {
      Scope inner{scope_, {}};
      const Restored<Scope*> scope(scope_, &inner);
      return execute(statement.body);
    }
    case Kind::kCallBlock:
      execute_call_block(statement);
      break;
    case Kind::kBreak:
      return Flow::kBreak;
    case Kind::kContinue:
      return Flow::kContinue;
  }
  return Flow::kNext;
}

Renderer::Flow Renderer::execute_if(const Statement& statement) {
  for (const auto& [condition, body] : statement.branches) {
    if (condition == nullptr || evaluate(condition).truth()) return execute(body);
  }
  return Flow::kNext;
}

void Renderer::bind_target(const Statement& statement, const Value& element) {
  if (statement.names.size() == 1) return scope_->set(statement.names[0], element);
  const List parts = elements(element, budget_);
  if (parts.size() != statement.names.size()) {
    fail("{} values cannot be given to {} variables", parts.size(), statement.names.size());
  }
  for (size_t i = 0; i < parts.size(); ++i) scope_->set(statement.names[i], parts[i]);
}

/// What the loop runs through: without the elements that its condition leaves out, so that loop.length counts the rest.
List Renderer::loop_elements(const Statement& statement) {
  List all = elements(evaluate(statement.expression), budget_);
  if (statement.condition == nullptr) return all;
  List kept;
  for (auto& element : all) {
    Scope inner{scope_, {}};
    const Restored<Scope*> scope(scope_, &inner);
    bind_target(statement, element);
    if (evaluate(statement.condition).truth()) kept.push_back(std::move(element));
  }
  return kept;
}

void Renderer::execute_for(const Statement& statement) {
  const List all = loop_elements(statement);
  for (size_t i = 0; i < all.size(); ++i) {
    Scope inner{scope_, {}};
    const Restored<Scope*> scope(scope_, &inner);
    bind_target(statement, all[i]);
    inner.set("loop", loop_variable(all, i, budget_));
    if (execute(statement.body) == Flow::kBreak) break;
  }
  if (all.empty()) execute(statement.otherwise);
}

void Renderer::execute_set(const Statement& statement) {
  const Value value = evaluate(statement.expression);
  if (statement.attribute.empty()) return bind_target(statement, value);
  const Value target = lookup(statement.names[0]);
  if (!target.is_namespace())
    fail("'{}' is {}: only a namespace's attributes can be set", statement.names[0], target.type());
  if (value.is_namespace() || value.is_callable()) fail("a {} cannot be put into a namespace", value.type());
  for (auto& [name, place] : target.members()) {
    budget_.spend(1);
    if (name == statement.attribute) {
      place = value;
      return;
    }
  }
  target.members().emplace_back(statement.attribute, value);
}

Value Renderer::make_macro(const Statement& statement, Scope* scope) {
  return Callable{statement.text, [this, &statement, scope](const Arguments& arguments) {
                    return call_macro(statement, arguments, scope);
                  }};
}

Value Renderer::call_macro(const Statement& macro, const Arguments& arguments, Scope* scope) {
  const Level level(*this);
  std::vector<std::string_view> names;
  for (const auto& parameter : macro.parameters) names.emplace_back(parameter.name);
  Arguments own = arguments;
  Value caller;
  std::erase_if(own.named, [&](const auto& argument) {
    if (argument.first != "caller" || std::find(names.begin(), names.end(), "caller") != names.end()) return false;
    caller = argument.second;
    return true;
  });
  const auto bound = bind_arguments(own, macro.text, names);
  Scope inner{scope, {}};
  const Restored<Scope*> entered(scope_, &inner);
  if (!caller.is_undefined()) inner.set("caller", caller);
  for (size_t i = 0; i < bound.size(); ++i) {
    const Parameter& parameter = macro.parameters[i];
    const bool missing = bound[i].is_undefined() && parameter.fallback != nullptr;
    inner.set(parameter.name, missing ? evaluate(parameter.fallback) : bound[i]);
  }
  return rendered(macro.body);
}

/// {% call macro(...) %}body{% endcall %}: the macro gets the body as its function caller().
void Renderer::execute_call_block(const Statement& statement) {
  const Expression& call = *statement.expression;
  const Value macro = evaluate(call.parts[0]);
  if (!macro.is_callable()) fail("{} cannot be called", macro.type());
  Arguments arguments = evaluate_arguments(call.call);
  arguments.named.emplace_back("caller", make_macro(statement, scope_));
  print(to_text(macro.callable().call(arguments), budget_));
}

}  // namespace seqloom::jinja
