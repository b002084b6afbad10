#pragma once
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace seqloom {

namespace jinja {
struct Syntax;
}

/// A template in the part of Jinja that chat templates use, rendered as `transformers` does it: trim_blocks and
/// lstrip_blocks on, no access to anything but the variables given, raise_exception and strftime_now beside Jinja's own
/// functions, JSON by json.dumps without escapes. Templates are not trusted: nesting, steps and the text they make are
/// bounded. Not supported, with an error that says so: inheritance, include, import, recursive loops, keys of dicts
/// that are not text, integers beyond 64 bits. A tuple is a list, and prints as one; upper and lower case map one
/// character to one.
class JinjaTemplate {
 public:
  /// Throws Error "NAME: line N: ...".
  JinjaTemplate(std::string_view source, std::string name);
  ~JinjaTemplate();
  JinjaTemplate(JinjaTemplate&&) noexcept;
  JinjaTemplate& operator=(JinjaTemplate&&) noexcept;

  /// `variables` is an object. Throws Error "NAME: line N: ...", also for raise_exception.
  std::string render(const nlohmann::ordered_json& variables) const;

 private:
  std::string name_;
  std::unique_ptr<const jinja::Syntax> syntax_;
};

}  // namespace seqloom
