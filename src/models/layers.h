#pragma once
#include <memory>
#include <string>
#include <vector>

#include "blocks/residual.h"

namespace seqloom {

/// The residual blocks of a stack, from a recipe's list:
///   layers = [ { repeat = 3, mixer = { kind = "mamba" } }, { mixer = { kind = "attention", window = 128 } } ]
/// `channel` is the channel mixer of layers that name none. Throws UsageError that begins with `where`, the list's
/// place.
std::vector<std::shared_ptr<ResidualBlock>> make_layers(int64_t width, const ResidualOptions& residual,
                                                        const Config& layers, const Config& channel,
                                                        const std::string& where);

}  // namespace seqloom
