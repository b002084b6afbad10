#include "io/utf8.h"

namespace seqloom {
namespace {

size_t character_length(unsigned char lead) {
  if (lead < 0x80) return 1;
  if (lead >= 0xc2 && lead <= 0xdf) return 2;
  if (lead >= 0xe0 && lead <= 0xef) return 3;
  if (lead >= 0xf0 && lead <= 0xf4) return 4;
  return 0;
}

/// Whether byte `c` may stand at place `i` >= 1 of a character that begins with `lead`.
bool continues(unsigned char lead, size_t i, unsigned char c) {
  if (i > 1) return c >= 0x80 && c <= 0xbf;
  const unsigned char low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
  const unsigned char high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
  return c >= low && c <= high;
}

}  // namespace

Utf8Step utf8_step(std::string_view text) {
  const auto lead = static_cast<unsigned char>(text.front());
  const size_t length = character_length(lead);
  if (length == 0) return {Utf8Step::Kind::kInvalid, 1};
  size_t good = 1;
  while (good < length && good < text.size() && continues(lead, good, static_cast<unsigned char>(text[good]))) ++good;
  if (good == length) return {Utf8Step::Kind::kWhole, length};
  return {good == text.size() ? Utf8Step::Kind::kCut : Utf8Step::Kind::kInvalid, good};
}

size_t utf8_prefix(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const Utf8Step step = utf8_step(text.substr(at));
    if (step.kind != Utf8Step::Kind::kWhole) break;
    at += step.bytes;
  }
  return at;
}

char32_t utf8_character(std::string_view bytes) {
  const auto lead = static_cast<unsigned char>(bytes.front());
  char32_t value = bytes.size() == 1 ? lead : lead & (0x7fU >> bytes.size());
  for (const char c : bytes.substr(1)) value = value << 6 | (static_cast<unsigned char>(c) & 0x3fU);
  return value;
}

void append_utf8(std::string& text, char32_t c) {
  const auto continuation = [&](int shift) { text += static_cast<char>(0x80 | (c >> shift & 0x3f)); };
  if (c < 0x80) {
    text += static_cast<char>(c);
  } else if (c < 0x800) {
    text += static_cast<char>(0xc0 | c >> 6);
    continuation(0);
  } else if (c < 0x10000) {
    text += static_cast<char>(0xe0 | c >> 12);
    continuation(6);
    continuation(0);
  } else {
    text += static_cast<char>(0xf0 | c >> 18);
    continuation(12);
    continuation(6);
    continuation(0);
  }
}

}  // namespace seqloom
