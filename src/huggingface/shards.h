#pragma once
#include <memory>
#include <string>

#include "huggingface/correspondence.h"

namespace seqloom::huggingface {

/// The tensors of a folder's model.safetensors, or of the shards that its model.safetensors.index.json names. The files
/// stay mapped as long as the source lives; `files` is how many. Throws Error when there are none, when a shard lies
/// outside the folder, or when a file is broken. A pickle is never read.
struct Shards {
  TensorSource source;
  int64_t files = 0;
};
Shards open_shards(const std::string& folder);

}  // namespace seqloom::huggingface
