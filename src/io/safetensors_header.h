#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace seqloom {

struct TensorInfo {
  std::string dtype;  // "F32", "BF16", ...
  std::vector<int64_t> shape;
  uint64_t begin = 0, end = 0;  // bytes, from SafetensorsHeader::data_start
};

struct SafetensorsHeader {
  std::map<std::string, TensorInfo> tensors;
  std::map<std::string, std::string> metadata;
  uint64_t data_start = 0;
};

/// Bytes of one element; 0 for a type that the format does not have.
size_t safetensors_element_size(const std::string& dtype);

/// Reads and checks the header of a whole safetensors file: lengths, types, shapes, and that the tensors cover the data
/// without gap or overlap. Throws Error that begins with `name`.
SafetensorsHeader parse_safetensors_header(std::span<const std::byte> file, const std::string& name);

}  // namespace seqloom
