#pragma once
#include <cstdint>
#include <span>

namespace seqloom {

/// What a character is to BERT's normaliser and pre-tokeniser.
enum class BertCharacter : uint8_t { kOther, kControl, kSpace, kPunctuation, kIdeograph, kMark };

struct BertRange {
  char32_t first, last;
  BertCharacter kind;
};
/// Every step-th character of a range has its small letter `move` further on.
struct LowerRun {
  char32_t first, last, step;
  int32_t move;
};

std::span<const BertRange> bert_ranges();  // sorted; all others are kOther
std::span<const LowerRun> lower_runs();    // sorted by first; one character's run may begin inside another's

BertCharacter bert_character(char32_t character);
/// The small letter; U+0130, whose small form is two characters, stays.
char32_t lowered(char32_t character);

}  // namespace seqloom
