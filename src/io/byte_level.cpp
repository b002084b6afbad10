#include "io/byte_level.h"

#include <unordered_map>

#include "io/utf8.h"

namespace seqloom {

std::string byte_character(unsigned char byte) {
  const auto printable = [](unsigned b) {
    return (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || (b >= 0xae && b <= 0xff);
  };
  unsigned character = byte;
  if (!printable(byte)) {
    character = 0x100;
    for (unsigned b = 0; b < byte; ++b) character += printable(b) ? 0 : 1;
  }
  if (character < 0x80) return {static_cast<char>(character)};
  return {static_cast<char>(0xc0 | character >> 6), static_cast<char>(0x80 | (character & 0x3f))};
}

std::optional<std::string> bytes_of_characters(const std::string& written) {
  static const auto bytes = [] {
    std::unordered_map<std::string, char> map;
    for (int b = 0; b < 256; ++b) map[byte_character(static_cast<unsigned char>(b))] = static_cast<char>(b);
    return map;
  }();
  std::string result;
  for (size_t at = 0; at < written.size();) {
    const size_t length = utf8_step(std::string_view(written).substr(at)).bytes;
    const auto found = bytes.find(written.substr(at, length));
    if (found == bytes.end()) return std::nullopt;
    result += found->second;
    at += length;
  }
  return result;
}

}  // namespace seqloom
