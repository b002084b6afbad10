#pragma once
#include <optional>
#include <string>

namespace seqloom {

/// GPT-2's way to write bytes as printable text: each byte is one character, itself where it is printable ASCII or
/// Latin-1, else U+0100 and up in order.
std::string byte_character(unsigned char byte);

/// The bytes that valid UTF-8 text stands for; nullopt when it has a character that stands for no byte.
std::optional<std::string> bytes_of_characters(const std::string& written);

}  // namespace seqloom
