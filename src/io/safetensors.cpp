#include "io/safetensors.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "base/fields.h"
#include "io/atomic_file.h"

namespace seqloom {
namespace {

const std::map<std::string, torch::ScalarType>& types() {
  static const std::map<std::string, torch::ScalarType> table = {{"F64", torch::kFloat64},
                                                                 {"F32", torch::kFloat32},
                                                                 {"F16", torch::kFloat16},
                                                                 {"BF16", torch::kBFloat16},
                                                                 {"F8_E4M3", torch::kFloat8_e4m3fn},
                                                                 {"F8_E5M2", torch::kFloat8_e5m2},
                                                                 {"I64", torch::kInt64},
                                                                 {"I32", torch::kInt32},
                                                                 {"I16", torch::kInt16},
                                                                 {"I8", torch::kInt8},
                                                                 {"U64", torch::kUInt64},
                                                                 {"U32", torch::kUInt32},
                                                                 {"U16", torch::kUInt16},
                                                                 {"U8", torch::kUInt8},
                                                                 {"BOOL", torch::kBool}};
  return table;
}

std::string type_name(torch::ScalarType type) {
  for (const auto& [name, known] : types()) {
    if (known == type) return name;
  }
  misuse("a tensor of type {} cannot be written to safetensors", toString(type));
}

/// Tensors begin at a multiple of this.
constexpr size_t kAlignment = 64;

/// In the order in which each begins at a multiple of its elements' size: the format has no room between them.
std::vector<std::pair<std::string, torch::Tensor>> widest_first(const TensorMap& tensors) {
  std::vector<std::pair<std::string, torch::Tensor>> order(tensors.begin(), tensors.end());
  std::stable_sort(order.begin(), order.end(),
                   [](const auto& a, const auto& b) { return a.second.element_size() > b.second.element_size(); });
  return order;
}

}  // namespace

Safetensors::Safetensors(const std::string& path)
    : path_(path),
      file_(std::make_shared<MappedFile>(path, MappedFile::Writes::kCopied)),
      header_(parse_safetensors_header(file_->bytes(), path)) {}

const TensorInfo& Safetensors::info(const std::string& name) const {
  const auto found = header_.tensors.find(name);
  if (found == header_.tensors.end()) fail("{}: there is no tensor '{}'", path_, name);
  return found->second;
}

torch::Tensor Safetensors::view(const std::string& name) const {
  const TensorInfo& info = this->info(name);
  const std::byte* at = file_->bytes().data() + header_.data_start + info.begin;
  const bool aligned = reinterpret_cast<uintptr_t>(at) % safetensors_element_size(info.dtype) == 0;
  if (!aligned || info.begin == info.end || info.dtype == "BOOL") return load(name);
  return torch::from_blob(
      const_cast<std::byte*>(at), info.shape, [file = file_](void*) {}, types().at(info.dtype));
}

torch::Tensor Safetensors::load(const std::string& name) const {
  const TensorInfo& info = this->info(name);
  torch::Tensor tensor = torch::empty(info.shape, types().at(info.dtype));
  const std::byte* source = file_->bytes().data() + header_.data_start + info.begin;
  if (info.dtype == "BOOL") {
    // any other byte than 0 and 1 in a bool is undefined behaviour
    tensor.copy_(torch::from_blob(const_cast<std::byte*>(source), info.shape, torch::kUInt8).ne(0));
  } else if (info.end > info.begin) {
    std::memcpy(tensor.data_ptr(), source, info.end - info.begin);
  }
  return tensor;
}

TensorMap Safetensors::load_all() const {
  TensorMap all;
  for (const auto& [name, info] : header_.tensors) all[name] = load(name);
  return all;
}

void save_safetensors(const std::string& path, const TensorMap& tensors, const Metadata& metadata) {
  std::vector<torch::Tensor> data;
  Config header = Config::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  uint64_t at = 0;
  for (const auto& [name, tensor] : widest_first(tensors)) {
    if (name == "__metadata__") misuse("{}: a tensor cannot be called __metadata__", path);
    data.push_back(tensor.detach().to(torch::kCPU).contiguous());
    header[name] = {{"dtype", type_name(tensor.scalar_type())},
                    {"shape", tensor.sizes().vec()},
                    {"data_offsets", {at, at + data.back().nbytes()}}};
    at += data.back().nbytes();
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const Config::exception&) {
    misuse("{}: a tensor's name or the metadata is not UTF-8", path);
  }
  text.append((kAlignment - (8 + text.size()) % kAlignment) % kAlignment, ' ');
  std::string length(8, '\0');
  for (size_t i = 0; i < 8; ++i) length[i] = static_cast<char>(text.size() >> (8 * i) & 0xff);
  AtomicFile file(path);
  file.write(length);
  file.write(text);
  for (const auto& tensor : data) file.write(tensor.data_ptr(), tensor.nbytes());
  file.commit();
}

}  // namespace seqloom
