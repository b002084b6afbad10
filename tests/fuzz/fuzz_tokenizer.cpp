// A tokenizer.json up to the first NUL byte and a text behind it: ids inside the vocabulary, or an Error.
#include <algorithm>
#include <cstdlib>

#include "base/error.h"
#include "io/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t json = std::min(input.find('\0'), size);
  const std::string_view text = input.substr(std::min(json + 1, size));
  try {
    const auto tokenizer = seqloom::parse_tokenizer(input.substr(0, json), "fuzz");
    seqloom::Utf8Stream characters;
    for (const int32_t id : tokenizer->encode(text)) {
      if (id < 0 || id >= tokenizer->vocabulary()) std::abort();
      characters.push(tokenizer->token_bytes(id));
    }
    tokenizer->encode("It's 42 o'clock,\r\n  \xe4\xbd\xa0\xe5\xa5\xbd \xff!");
  } catch (const seqloom::Error&) {
  }
  return 0;
}
