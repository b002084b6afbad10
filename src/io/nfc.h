#pragma once
#include <string>
#include <string_view>

namespace seqloom {

/// Unicode normalisation form C of UTF-8 text (Unicode Standard Annex 15). Bytes that are not UTF-8 stay as they are.
std::string to_nfc(std::string_view text);

/// Normalisation form D of characters.
std::u32string to_nfd(std::u32string_view text);

}  // namespace seqloom
