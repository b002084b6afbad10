#include "train/checkpoint.h"

#include <fmt/ostream.h>
#include <fmt/ranges.h>
#include <filesystem>

#include "base/error.h"
#include "base/random.h"

namespace seqloom {
namespace {

constexpr const char* kFormat = "seqloom-checkpoint-1";

TensorMap state_of(const torch::nn::Module& model) {
  TensorMap tensors;
  for (const auto& parameter : model.named_parameters()) tensors["model." + parameter.key()] = parameter.value();
  for (const auto& buffer : model.named_buffers()) tensors["model." + buffer.key()] = buffer.value();
  return tensors;
}

Config parse_metadata(const std::string& path, const Metadata& metadata, const std::string& key) {
  const auto found = metadata.find(key);
  Config value = found == metadata.end() ? Config() : Config::parse(found->second, nullptr, /*allow_exceptions=*/false);
  if (value.is_discarded() || value.is_null()) fail("{}: its metadata '{}' is missing or is not JSON", path, key);
  return value;
}

}  // namespace

std::string checkpoint_file(const std::string& path) {
  return std::filesystem::is_directory(path) ? (std::filesystem::path(path) / "checkpoint.safetensors").string() : path;
}

Checkpoint open_checkpoint(const std::string& path) {
  Checkpoint checkpoint;
  checkpoint.path = checkpoint_file(path);
  const Safetensors file(checkpoint.path);
  const auto& metadata = file.metadata();
  const auto format = metadata.find("format");
  if (format == metadata.end() || format->second != kFormat) {
    fail("{}: not a seqloom checkpoint (its metadata 'format' is not '{}')", checkpoint.path, kFormat);
  }
  checkpoint.recipe = parse_metadata(checkpoint.path, metadata, "recipe");
  const Config step = parse_metadata(checkpoint.path, metadata, "step");
  if (!checkpoint.recipe.is_object() || !step.is_number_integer() || step.get<int64_t>() < 0) {
    fail("{}: its recipe or step is malformed", checkpoint.path);
  }
  checkpoint.step = step.get<int64_t>();
  constexpr std::string_view kPrefix = "attachment.";
  for (const auto& [key, value] : metadata) {
    if (key.rfind(kPrefix, 0) == 0) checkpoint.attachments[key.substr(kPrefix.size())] = value;
  }
  return checkpoint;
}

void save_checkpoint(const Checkpoint& checkpoint, const torch::nn::Module& model, const TensorMap& optimizer) {
  TensorMap tensors = state_of(model);
  for (const auto& [name, tensor] : optimizer) tensors["optimizer." + name] = tensor;
  Metadata metadata = {
      {"format", kFormat}, {"recipe", checkpoint.recipe.dump()}, {"step", std::to_string(checkpoint.step)}};
  for (const auto& [key, value] : checkpoint.attachments) metadata["attachment." + key] = value;
  save_safetensors(checkpoint.path, tensors, metadata);
}

void load_model(const Checkpoint& checkpoint, torch::nn::Module& model) {
  const Safetensors file(checkpoint.path);
  TensorMap wanted = state_of(model);
  std::vector<std::string> problems;
  for (const auto& [name, tensor] : wanted) {
    const auto found = file.tensors().find(name);
    if (found == file.tensors().end()) {
      problems.push_back(fmt::format("'{}' is missing", name));
    } else if (torch::IntArrayRef(found->second.shape) != tensor.sizes()) {
      problems.push_back(fmt::format("'{}' is {}, the model has {}", name,
                                     fmt::streamed(torch::IntArrayRef(found->second.shape)),
                                     fmt::streamed(tensor.sizes())));
    }
  }
  for (const auto& [name, info] : file.tensors()) {
    if (name.rfind("model.", 0) == 0 && wanted.count(name) == 0)
      problems.push_back(fmt::format("'{}' is unknown", name));
  }
  if (!problems.empty()) fail("{}: does not fit the model: {}", checkpoint.path, fmt::join(problems, "; "));
  torch::NoGradGuard no_grad;
  for (auto& [name, tensor] : wanted) tensor.copy_(file.load(name));
}

std::string fingerprint(const Checkpoint& checkpoint) {
  uint64_t hash = static_cast<uint64_t>(checkpoint.step);
  for (const char c : checkpoint.recipe.dump()) hash = mixed(hash, static_cast<unsigned char>(c));
  return fmt::format("{:016x}", hash);
}

}  // namespace seqloom
