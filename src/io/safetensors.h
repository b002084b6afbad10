#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/torch.h"
#include "io/mapped_file.h"
#include "io/safetensors_header.h"

namespace seqloom {

using TensorMap = std::map<std::string, torch::Tensor>;
using Metadata = std::map<std::string, std::string>;

/// A memory-mapped safetensors file. Opening validates the whole header; no tensor is read until asked for.
class Safetensors {
 public:
  /// Throws Error naming the file when it is missing or malformed.
  explicit Safetensors(const std::string& path);

  const std::map<std::string, TensorInfo>& tensors() const { return header_.tensors; }
  const Metadata& metadata() const { return header_.metadata; }
  bool contains(const std::string& name) const { return header_.tensors.count(name) > 0; }
  /// A copy of one tensor in memory. Throws Error when there is no such name.
  torch::Tensor load(const std::string& name) const;
  TensorMap load_all() const;

 private:
  std::string path_;
  MappedFile file_;
  SafetensorsHeader header_;
};

/// Writes `path` so that it holds either the old content or all of the new: temporary name, fsync, rename.
void save_safetensors(const std::string& path, const TensorMap& tensors, const Metadata& metadata);

}  // namespace seqloom
