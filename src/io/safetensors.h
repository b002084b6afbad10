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

  const std::string& path() const { return path_; }
  const std::map<std::string, TensorInfo>& tensors() const { return header_.tensors; }
  const Metadata& metadata() const { return header_.metadata; }
  bool contains(const std::string& name) const { return header_.tensors.count(name) > 0; }
  /// A copy of one tensor in memory. Throws Error when there is no such name.
  torch::Tensor load(const std::string& name) const;
  /// One tensor where it lies in the file, which stays mapped as long as the tensor lives; a copy where it does not lie
  /// on a multiple of its elements' size, as files of other writers may have it. Writing to it does not change the
  /// file. Nobody may truncate the file meanwhile: reading behind its new end kills the process.
  torch::Tensor view(const std::string& name) const;
  TensorMap load_all() const;

 private:
  const TensorInfo& info(const std::string& name) const;

  std::string path_;
  std::shared_ptr<MappedFile> file_;
  SafetensorsHeader header_;
};

/// Writes `path` so that it holds either the old content or all of the new: temporary name, fsync, rename.
void save_safetensors(const std::string& path, const TensorMap& tensors, const Metadata& metadata);

}  // namespace seqloom
