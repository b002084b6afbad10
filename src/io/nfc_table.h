#pragma once
#include <cstdint>
#include <span>

namespace seqloom {

/// What the Unicode Character Database says about normalisation; written by scripts/make_nfc_table.py.
struct Decomposition {
  char32_t character, first, second;  // second is 0 where the character stands for one other
  bool composes;                      // first and second make the character again
};
struct CombiningClass {
  char32_t first, last;  // a range
  uint8_t value;         // above 0
};

std::span<const Decomposition> nfc_decompositions();      // sorted by character, without Hangul
std::span<const CombiningClass> nfc_combining_classes();  // sorted

}  // namespace seqloom
