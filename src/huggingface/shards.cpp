#include "huggingface/shards.h"

#include <fmt/ranges.h>

#include <filesystem>

#include "base/error.h"
#include "io/json.h"
#include "io/safetensors.h"

namespace seqloom::huggingface {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSingle = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";
constexpr size_t kMaxIndex = size_t{64} << 20;

using Files = std::map<std::string, std::shared_ptr<Safetensors>>;  // by name in the folder

/// The file of each tensor, as the index says.
std::map<std::string, std::string> read_index(const fs::path& folder) {
  const std::string path = (folder / kIndex).string();
  const Config index = parse_json(read_file(path, kMaxIndex), path);
  const Config& map = member(index, "weight_map");
  if (!map.is_object() || map.empty()) fail("{}: it has no table weight_map of tensors and their files", path);
  std::map<std::string, std::string> files;
  for (const auto& [tensor, file] : map.items()) {
    const std::string name = file.is_string() ? file.get<std::string>() : "";
    // a name alone: nothing absolute, no "..", no other folder
    if (name.empty() || name == "." || name == ".." || name.find_first_of("/\\") != std::string::npos) {
      fail("{}: the file of '{}' is {}; expected the name of a file in the same folder", path, printable(tensor),
           printable(file.dump()));
    }
    files[tensor] = name;
  }
  return files;
}

void check_present(const fs::path& folder, const std::map<std::string, std::string>& index, const Files& files) {
  std::vector<std::string> missing;
  for (const auto& [tensor, file] : index) {
    if (!files.at(file)->contains(tensor)) missing.push_back(fmt::format("'{}' ({})", printable(tensor), file));
  }
  if (missing.empty()) return;
  fail("{}: it names tensors that are not in their files: {}", (folder / kIndex).string(), fmt::join(missing, ", "));
}

[[noreturn]] void fail_without_tensors(const fs::path& folder) {
  for (const char* pickle : {"pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "consolidated.00.pth"}) {
    if (!fs::exists(folder / pickle)) continue;
    fail(
        "{}: a pickle, which can run any code when it is read: seqloom never loads one. Where you trust it, convert it "
        "in its folder: python -c \"import torch, safetensors.torch as s; s.save_file({{k: v.clone().contiguous() for "
        "k, v in torch.load('{}', weights_only=True).items()}}, 'model.safetensors')\"",
        (folder / pickle).string(), "pytorch_model.bin");
  }
  fail("{}: there is neither {} nor {}", folder.string(), kSingle, kIndex);
}

Tensor load(const Safetensors& file, const std::string& path, const std::string& tensor) {
  const std::string& type = file.tensors().at(tensor).dtype;
  if (type != "F32" && type != "F16" && type != "BF16" && type != "F64") {
    fail("{}: '{}' is of type {}; expected F32, F16 or BF16", path, printable(tensor), type);
  }
  return file.load(tensor);
}

}  // namespace

Shards open_shards(const std::string& name) {
  const fs::path folder = name;
  const bool single = fs::exists(folder / kSingle);
  if (!single && !fs::exists(folder / kIndex)) fail_without_tensors(folder);
  Files files;
  std::map<std::string, std::string> index;
  if (single) {
    files[kSingle] = std::make_shared<Safetensors>((folder / kSingle).string());
    for (const auto& [tensor, info] : files[kSingle]->tensors()) index[tensor] = kSingle;
  } else {
    index = read_index(folder);
    for (const auto& [tensor, file] : index) {
      if (files.count(file) == 0) files[file] = std::make_shared<Safetensors>((folder / file).string());
    }
    check_present(folder, index, files);
  }
  Shards shards;
  shards.files = static_cast<int64_t>(files.size());
  shards.source.name = (folder / (single ? kSingle : kIndex)).string();
  for (const auto& [tensor, file] : index) shards.source.shapes[tensor] = files.at(file)->tensors().at(tensor).shape;
  shards.source.load = [files, index, folder](const std::string& tensor) {
    const std::string& file = index.at(tensor);
    return huggingface::load(*files.at(file), (folder / file).string(), tensor);
  };
  return shards;
}

}  // namespace seqloom::huggingface
