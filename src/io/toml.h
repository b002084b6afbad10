#pragma once
#include <string>
#include <string_view>

#include "base/fields.h"

namespace seqloom {

/// A TOML file as a configuration tree. Throws Error naming file, line and column; dates, inf and nan are refused.
Config load_toml(const std::string& path);
/// The same for text; `name` stands for the file.
Config parse_toml(std::string_view text, const std::string& name);

/// Applies "a.b.c=value" (as in --set). The value is read as TOML, or taken as text where it is not: x=3, x=abc,
/// x=[1, 2]. Elements of lists go by number, "model.layers.0.mixer.kind=gla". Throws UsageError naming the assignment.
void set_key(Config& config, const std::string& assignment);

/// `base` with `overrides` laid over it: tables merge, everything else replaces.
Config merge(Config base, const Config& overrides);

}  // namespace seqloom
