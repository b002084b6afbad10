#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "base/fields.h"

namespace seqloom {

/// The tokens that a tokenizer puts round one text, such as a beginning-of-text token, or [CLS] and [SEP].
struct TokenFrame {
  std::vector<int32_t> before, after;
};

/// What the post_processor of a tokenizer.json says. Throws Error that begins with `name` for one that is not
/// supported, is malformed, or names ids beyond the vocabulary.
TokenFrame read_frame(const Config& root, const std::string& name, int64_t vocabulary);

}  // namespace seqloom
