// A recipe up to the first NUL byte and one --set behind it: a tree that can be printed and merged, or an Error.
#include <algorithm>

#include "io/toml.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t end = std::min(input.find('\0'), size);
  try {
    auto recipe = seqloom::parse_toml(input.substr(0, end), "fuzz");
    recipe.dump();
    const auto base = recipe;
    seqloom::set_key(recipe, std::string(input.substr(std::min(end + 1, size))));
    seqloom::merge(base, recipe).dump();
  } catch (const seqloom::Error&) {
  }
  return 0;
}
