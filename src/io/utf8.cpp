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

}  // namespace seqloom
