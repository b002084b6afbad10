#include "io/safetensors_header.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "io/json.h"

namespace seqloom {
namespace {

constexpr uint64_t kMaxHeader = 100'000'000;  // the format's own limit
constexpr size_t kMaxDims = 32;
constexpr uint64_t kMaxExtent = uint64_t{1} << 62;

TensorInfo parse_tensor(const Config& entry, const std::string& where) {
  if (!entry.is_object() || !entry.contains("dtype") || !entry.contains("shape") || !entry.contains("data_offsets")) {
    fail("{}: expected dtype, shape and data_offsets", where);
  }
  const Config &dtype = entry["dtype"], &shape = entry["shape"], &offsets = entry["data_offsets"];
  TensorInfo info;
  if (!dtype.is_string() || safetensors_element_size(dtype.get<std::string>()) == 0) {
    fail("{}: dtype {} is not one of the format's", where, printable(dtype.dump()));
  }
  info.dtype = dtype.get<std::string>();
  if (!shape.is_array() || shape.size() > kMaxDims)
    fail("{}: the shape is not a list of at most {} sizes", where, kMaxDims);
  uint64_t extent = safetensors_element_size(info.dtype);
  bool empty = false;
  for (const auto& size : shape) {
    if (!size.is_number_unsigned() || size.get<uint64_t>() > kMaxExtent)
      fail("{}: a size in its shape is not a whole number", where);
    info.shape.push_back(size.get<int64_t>());
    // the sizes beside a zero count as well: a tensor's strides are made of them
    if (__builtin_mul_overflow(extent, std::max<uint64_t>(size.get<uint64_t>(), 1), &extent) || extent > kMaxExtent)
      fail("{}: its shape overflows", where);
    empty = empty || size == 0;
  }
  const uint64_t bytes = empty ? 0 : extent;
  if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
      !offsets[1].is_number_unsigned()) {
    fail("{}: data_offsets is not a pair of whole numbers", where);
  }
  info.begin = offsets[0].get<uint64_t>();
  info.end = offsets[1].get<uint64_t>();
  if (info.begin > info.end || info.end - info.begin != bytes) {
    fail("{}: {} of shape {} takes {} bytes, its data_offsets say {}..{}", where, info.dtype, printable(shape.dump()),
         bytes, info.begin, info.end);
  }
  return info;
}

void check_coverage(const SafetensorsHeader& header, uint64_t data_size, const std::string& name) {
  std::vector<std::pair<const std::string*, const TensorInfo*>> order;
  for (const auto& [tensor, info] : header.tensors) order.emplace_back(&tensor, &info);
  std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return std::pair(a.second->begin, a.second->end) < std::pair(b.second->begin, b.second->end);
  });
  uint64_t covered = 0;
  for (const auto& [tensor, info] : order) {
    if (info->end > data_size) {
      fail("{}: tensor '{}' ends at byte {} of {}: the file is truncated", name, printable(*tensor), info->end,
           data_size);
    }
    if (info->begin < covered) fail("{}: tensor '{}' overlaps another one", name, printable(*tensor));
    if (info->begin > covered)
      fail("{}: {} bytes before tensor '{}' belong to no tensor", name, info->begin - covered, printable(*tensor));
    covered = info->end;
  }
  if (covered != data_size) fail("{}: {} bytes at its end belong to no tensor", name, data_size - covered);
}

}  // namespace

size_t safetensors_element_size(const std::string& dtype) {
  static const std::map<std::string, size_t> sizes = {
      {"F64", 8}, {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"I64", 8}, {"I32", 4},
      {"I16", 2}, {"I8", 1},  {"U64", 8}, {"U32", 4},  {"U16", 2},     {"U8", 1},      {"BOOL", 1}};
  const auto found = sizes.find(dtype);
  return found == sizes.end() ? 0 : found->second;
}

SafetensorsHeader parse_safetensors_header(std::span<const std::byte> file, const std::string& name) {
  if (file.size() < 8) fail("{}: {} bytes are too few for a safetensors file", name, file.size());
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | static_cast<uint64_t>(file[static_cast<size_t>(i)]);
  if (length > kMaxHeader)
    fail("{}: a header of {} bytes is over the limit of {}; not a safetensors file?", name, length, kMaxHeader);
  if (length > file.size() - 8) {
    fail("{}: its header says {} bytes but {} follow: the file is truncated or not safetensors", name, length,
         file.size() - 8);
  }
  const Config json = parse_json({reinterpret_cast<const char*>(file.data()) + 8, length}, name);
  if (!json.is_object()) fail("{}: its header is not a JSON object", name);
  SafetensorsHeader header;
  header.data_start = 8 + length;
  for (const auto& [key, entry] : json.items()) {
    if (key != "__metadata__") {
      header.tensors[key] = parse_tensor(entry, fmt::format("{}: tensor '{}'", name, printable(key)));
      continue;
    }
    if (!entry.is_object()) fail("{}: __metadata__ is not a table", name);
    for (const auto& [field, value] : entry.items()) {
      if (!value.is_string()) fail("{}: __metadata__.{} is not text", name, printable(field));
      header.metadata[field] = value.get<std::string>();
    }
  }
  check_coverage(header, file.size() - header.data_start, name);
  return header;
}

}  // namespace seqloom
