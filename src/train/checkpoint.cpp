#include "train/checkpoint.h"

#include <fmt/ostream.h>
#include <fmt/ranges.h>
#include <filesystem>
#include <set>

#include "base/error.h"
#include "base/random.h"
#include "io/json.h"

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

using Linears = std::map<std::string, LinearImpl*>;  // by the names of their weights

/// Those whose weights may be in any format.
Linears linears_of(torch::nn::Module& model) {
  Linears found;
  for (const auto& item : model.named_modules("model", /*include_self=*/false)) {
    auto* linear = dynamic_cast<LinearImpl*>(item.value().get());
    if (linear != nullptr && !linear->keeps_float()) found[item.key() + ".weight"] = linear;
  }
  return found;
}

bool kept_as_it_is(torch::ScalarType type) {
  return type == torch::kFloat32 || type == torch::kBFloat16 || type == torch::kInt8;
}

/// "model.NAME.weight" -> "model.NAME.scale".
std::string scale_of(const std::string& weight) {
  return weight.substr(0, weight.rfind('.')) + ".scale";
}

/// What is wrong with the scale of an int8 weight; empty: nothing.
std::string problem_of_scale(const Safetensors& file, const std::string& weight, int64_t in) {
  const std::string name = scale_of(weight);
  const auto found = file.tensors().find(name);
  if (found == file.tensors().end()) return fmt::format("'{}' is int8 and '{}' is missing", weight, name);
  const TensorInfo& scale = found->second;
  const int64_t out = file.tensors().at(weight).shape[0];
  const bool fits = scale.dtype == "F32" && scale.shape.size() == 2 && scale.shape[0] == out && scale.shape[1] > 0 &&
                    in % scale.shape[1] == 0;
  if (fits) return "";
  return fmt::format("'{}' is {} {}, expected F32 [{}, groups] with groups that divide {}", name, scale.dtype,
                     fmt::streamed(torch::IntArrayRef(scale.shape)), out, in);
}

/// What is wrong with the file's tensor of that name; empty: nothing.
std::string problem_of(const Safetensors& file, const std::string& name, const torch::Tensor& wanted,
                       const Linears& linears) {
  const auto found = file.tensors().find(name);
  if (found == file.tensors().end()) return fmt::format("'{}' is missing", name);
  const TensorInfo& info = found->second;
  if (torch::IntArrayRef(info.shape) != wanted.sizes()) {
    return fmt::format("'{}' is {}, the model has {}", name, fmt::streamed(torch::IntArrayRef(info.shape)),
                       fmt::streamed(wanted.sizes()));
  }
  if (info.dtype == "I8" && linears.count(name) > 0) return problem_of_scale(file, name, wanted.size(1));
  if (wanted.is_floating_point() && info.dtype.find('F') == std::string::npos) {
    return fmt::format("'{}' is {}, the model has {}", name, info.dtype, toString(wanted.scalar_type()));
  }
  return "";
}

/// Throws Error where the file's "model.*" are not what is wanted. Linear layers may be int8 with a scale.
void check_fit(const Safetensors& file, const TensorMap& wanted, const Linears& linears) {
  std::vector<std::string> problems;
  std::set<std::string> known;
  for (const auto& [name, tensor] : wanted) {
    known.insert(name);
    const std::string problem = problem_of(file, name, tensor, linears);
    if (!problem.empty()) problems.push_back(problem);
    const auto found = file.tensors().find(name);
    if (found != file.tensors().end() && found->second.dtype == "I8") known.insert(scale_of(name));
  }
  for (const auto& [name, info] : file.tensors()) {
    if (name.rfind("model.", 0) == 0 && known.count(name) == 0)
      problems.push_back(fmt::format("'{}' is unknown", printable(name)));
  }
  if (!problems.empty()) fail("{}: does not fit the model: {}", file.path(), fmt::join(problems, "; "));
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
  if (metadata.count("weights") > 0) {
    checkpoint.weights = read_options<WeightFormat>(parse_metadata(checkpoint.path, metadata, "weights"),
                                                    checkpoint.path + ": its metadata 'weights'");
  }
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
  if (checkpoint.weights != WeightFormat()) metadata["weights"] = write_options(checkpoint.weights).dump();
  for (const auto& [key, value] : checkpoint.attachments) metadata["attachment." + key] = value;
  save_safetensors(checkpoint.path, tensors, metadata);
}

void load_model(const Checkpoint& checkpoint, torch::nn::Module& model) {
  const Safetensors file(checkpoint.path);
  if (checkpoint.weights.type == "int8") {
    fail("{}: its weights are int8, which cannot be trained; use the checkpoint that they were made from", file.path());
  }
  const TensorMap wanted = state_of(model);
  check_fit(file, wanted, {});
  const torch::NoGradGuard no_grad;
  for (auto [name, tensor] : wanted) tensor.copy_(file.load(name));
}

void map_model(const Checkpoint& checkpoint, torch::nn::Module& model) {
  const Safetensors file(checkpoint.path);
  const TensorMap wanted = state_of(model);
  const Linears linears = linears_of(model);
  check_fit(file, wanted, linears);
  const torch::NoGradGuard no_grad;
  for (auto [name, tensor] : wanted) {
    tensor.requires_grad_(false);
    const torch::Tensor found = file.view(name);
    const auto linear = linears.find(name);
    if (linear != linears.end() && kept_as_it_is(found.scalar_type())) {
      linear->second->take(found, found.scalar_type() == torch::kInt8 ? file.view(scale_of(name)) : torch::Tensor());
    } else {
      tensor.set_data(found.to(tensor.scalar_type()));
    }
  }
}

std::string fingerprint(const Checkpoint& checkpoint) {
  uint64_t hash = static_cast<uint64_t>(checkpoint.step);
  const std::string weights = checkpoint.weights == WeightFormat() ? "" : write_options(checkpoint.weights).dump();
  for (const char c : checkpoint.recipe.dump() + weights) hash = mixed(hash, static_cast<unsigned char>(c));
  return fmt::format("{:016x}", hash);
}

}  // namespace seqloom
