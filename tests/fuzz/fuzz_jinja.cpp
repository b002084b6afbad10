// A template up to the first NUL byte and JSON variables behind it: a text, or an Error, within the bounds.
#include <algorithm>

#include "base/error.h"
#include "io/jinja/template.h"
#include "io/json.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t end = std::min(input.find('\0'), size);
  try {
    auto variables = seqloom::parse_ordered_json(input.substr(std::min(end + 1, size)), "fuzz");
    if (!variables.is_object()) variables = nlohmann::ordered_json::object();
    seqloom::JinjaTemplate(input.substr(0, end), "fuzz").render(variables);
  } catch (const seqloom::Error&) {
  }
  return 0;
}
