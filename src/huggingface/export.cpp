#include "huggingface/export.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>

#include "huggingface/sentence_files.h"
#include "io/atomic_file.h"
#include "io/json.h"

namespace seqloom::huggingface {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "model.";  // of a checkpoint's tensors

/// Layers whose kind no layer of this family has, and parameters that differ in shape from the first layer's, by which
/// all are described.
std::vector<std::string> foreign_layers(const ModelTable& table, const Family& family) {
  std::vector<std::string> found;
  for (size_t i = 0; i < table.mixers.size(); ++i) {
    const auto mixer = table.mixers[i].at("kind").get<std::string>();
    const auto channel = table.channels[i].at("kind").get<std::string>();
    if (mixer != family.mixer)
      found.push_back(fmt::format("layers.{}.mixer.kind = {} (it would be {})", i, mixer, family.mixer));
    if (std::find(family.channels.begin(), family.channels.end(), channel) == family.channels.end()) {
      found.push_back(
          fmt::format("layers.{}.channel.kind = {} (it would be {})", i, channel, fmt::join(family.channels, " or ")));
    }
  }
  for (const auto& [name, shape] : table.shapes) {
    if (!name.starts_with("layers.")) continue;
    const auto first = table.shapes.find("layers.0." + name.substr(name.find('.', 7) + 1));
    if (first == table.shapes.end() || first->second != shape) found.push_back(name + " differs from layer 0's");
  }
  return found;
}

/// What the family would make of the model otherwise than it is; empty: it describes it.
std::vector<std::string> lost(const ModelTable& table, const Family& family, Config& config) {
  auto found = foreign_layers(table, family);
  if (!found.empty()) return found;
  try {
    config = family.write(table);
    ConfigFile file{config, "config.json", {}};
    for (auto item = file.values.begin(); item != file.values.end();) {
      item = item->is_null() ? file.values.erase(item) : std::next(item);
    }
    const Description again = family.read(file);
    found = differences(table, write_out(again.model, family.task_kind, "config.json"));
    written_out(family.names, table.shapes);
  } catch (const Error& error) {
    found.emplace_back(error.what());
  } catch (const std::out_of_range&) {  // a parameter that the family's models have
    found.emplace_back("it lacks parameters that this family has");
  }
  return found;
}

Shapes model_shapes(const Safetensors& file) {
  Shapes shapes;
  for (const auto& [name, info] : file.tensors()) {
    if (name.starts_with(kPrefix)) shapes[name.substr(kPrefix.size())] = info.shape;
  }
  return shapes;
}

/// The ids that an imported checkpoint's own config.json gave its special tokens.
void keep_token_ids(const Checkpoint& checkpoint, Config& config) {
  const auto found = checkpoint.attachments.find("config.json");
  if (found == checkpoint.attachments.end()) return;
  const Config original = Config::parse(found->second, nullptr, /*allow_exceptions=*/false);
  for (const char* key : {"bos_token_id", "eos_token_id", "pad_token_id"}) {
    if (!member(original, key).is_null()) config[key] = original[key];
  }
}

void write_beside(const fs::path& out, const std::string& name, const std::string& content) {
  fs::create_directories((out / name).parent_path());
  write_file_atomically((out / name).string(), content);
}

}  // namespace

Expressed express(const ModelTable& table, const std::string& task_kind, const std::string& wanted) {
  constexpr size_t kForeign = 1'000'000;
  Expressed nearest;
  std::vector<std::string> problems;
  size_t least = 0;
  for (const auto& name : wanted.empty() ? families().names() : std::vector<std::string>{wanted}) {
    const Family& family = families().get(name);
    if (family.task_kind != task_kind) continue;
    Config config;
    const auto found = lost(table, family, config);
    if (found.empty()) return {name, config};
    // layers of another kind are farther away than any options
    const size_t distance = found.size() + (config.is_null() ? kForeign : 0);
    if (nearest.family.empty() || distance < least) {
      nearest.family = name;
      least = distance;
      problems = found;
    }
  }
  if (nearest.family.empty()) {
    misuse("no family {}of checkpoints holds a model of task.kind = \"{}\"", wanted.empty() ? "" : wanted + " ",
           task_kind);
  }
  fail("no family of checkpoints describes this model; {} comes nearest, but cannot express: {}", nearest.family,
       fmt::join(problems, "; "));
}

std::string export_checkpoint(const std::string& run, const std::string& out, const std::string& wanted) {
  const Checkpoint checkpoint = open_checkpoint(run);
  if (checkpoint.weights.type == "int8") {
    fail("{}: its weights are int8; export the checkpoint that they were made from", checkpoint.path);
  }
  const Safetensors file(checkpoint.path);
  const Config task = member(checkpoint.recipe, "task");
  const std::string kind = text_at(task, "kind");
  if (kind != "language" && kind != "sentence_embedding") {
    fail("{}: task.kind is '{}'; language models and sentence encoders can be exported", checkpoint.path, kind);
  }
  ModelTable table = write_out(member(checkpoint.recipe, "model"), kind, checkpoint.path + ": model");
  table.shapes = model_shapes(file);
  table.task = task;
  Expressed expressed = express(table, kind, wanted);
  keep_token_ids(checkpoint, expressed.config);

  TensorMap tensors;
  for (const auto& c : written_out(families().get(expressed.family).names, table.shapes)) {
    std::map<std::string, Tensor> ours;
    for (const auto& name : c.ours) ours[name] = file.load(std::string(kPrefix) + name);
    tensors[c.theirs] = joined(c, ours);
  }
  const fs::path folder = out;
  fs::create_directories(folder);
  save_safetensors((folder / "model.safetensors").string(), tensors, {{"format", "pt"}});
  write_beside(folder, "config.json", expressed.config.dump(2) + "\n");
  for (const auto& [name, content] : checkpoint.attachments) {
    if (name != "config.json" && name.find('/') == std::string::npos) write_beside(folder, name, content);
  }
  if (kind == "sentence_embedding") {
    for (const auto& [name, content] : write_sentence_files(task, table.options.at("width"))) {
      write_beside(folder, name, content);
    }
  }
  return expressed.family;
}

}  // namespace seqloom::huggingface
