#pragma once
#include <string>
#include <string_view>

#include "base/fields.h"

namespace seqloom {

/// JSON from untrusted text: nesting of at most 64 levels, no duplicate keys, valid UTF-8. Throws Error that begins
/// with `name` and says what is wrong and where.
Config parse_json(std::string_view text, const std::string& name);

}  // namespace seqloom
