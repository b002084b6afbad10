#pragma once
#include <string>
#include <utility>
#include <vector>

#include "io/jinja/builtins.h"
#include "io/jinja/syntax.h"

namespace seqloom::jinja {

/// The variables of a part of a template; lookups go on in `parent`.
struct Scope {
  Scope* parent = nullptr;
  std::vector<std::pair<std::string, Value>> variables;

  void set(const std::string& name, Value value);
};

/// Runs a template once.
class Renderer {
 public:
  Renderer(const Syntax& syntax, Budget& budget) : syntax_(syntax), budget_(budget) {}

  std::string run(const Value& variables);
  /// Of what is being rendered, for messages.
  int line() const { return line_; }

 private:
  enum class Flow { kNext, kBreak, kContinue };

  Flow execute(const Body& body);
  Flow execute(const Statement& statement);
  Flow execute_if(const Statement& statement);
  void execute_for(const Statement& statement);
  void execute_set(const Statement& statement);
  void execute_call_block(const Statement& statement);
  void assign(const Statement& statement, const Value& value);
  std::string rendered(const Body& body);
  void print(const std::string& text);
  List loop_elements(const Statement& statement);
  void bind_target(const Statement& statement, const Value& element);

  Value evaluate(Expr expression);
  Value evaluate_kind(const Expression& expression);
  Value evaluate_binary(const Expression& expression);
  Value evaluate_compare(const Expression& expression);
  Value evaluate_dict(const Expression& expression);
  Value evaluate_call(const Expression& expression);
  Value lookup(const std::string& name);
  Arguments evaluate_arguments(const Call& call);
  Value make_macro(const Statement& statement, Scope* scope);
  Value call_macro(const Statement& macro, const Arguments& arguments, Scope* scope);

  /// A level of evaluation while it lives. Throws Error when there are too many.
  class Level {
   public:
    explicit Level(Renderer& renderer);
    ~Level() { --depth_; }
    Level(const Level&) = delete;
    Level& operator=(const Level&) = delete;

   private:
    int& depth_;
  };

  const Syntax& syntax_;
  Budget& budget_;
  Scope root_;
  Scope* scope_ = &root_;
  std::string out_;
  Value block_;  // the text that a filter block works on
  int line_ = 1, depth_ = 0;
};

}  // namespace seqloom::jinja
