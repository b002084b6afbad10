#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace seqloom::jinja {

struct Token {
  enum class Kind {
    kText,      // of the template itself
    kPrint,     // {{
    kPrintEnd,  // }}
    kTag,       // {%
    kTagEnd,    // %}
    kName,
    kString,  // text: its content, escapes resolved
    kInteger,
    kFloat,
    kOperator,  // text: the operator
    kEnd
  } kind;
  std::string text;
  int line;
};

/// Cuts a template into tokens as Jinja does with trim_blocks and lstrip_blocks on: a tag takes the line break behind
/// it and the blanks in front of it along; a '-' inside a delimiter takes all white space on its side, a '+' none. One
/// line break at the template's end is dropped. Throws Error "line N: ...".
std::vector<Token> tokenize(std::string_view source);

}  // namespace seqloom::jinja
