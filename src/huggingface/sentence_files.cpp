#include "huggingface/sentence_files.h"

#include <algorithm>
#include <filesystem>

#include "base/error.h"
#include "io/json.h"
#include "io/mapped_file.h"

namespace seqloom::huggingface {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxFile = size_t{1} << 20;
constexpr const char* kModes[][2] = {
    {"pooling_mode_mean_tokens", "mean"}, {"pooling_mode_max_tokens", "max"}, {"pooling_mode_cls_token", "cls"}};

/// The file's table, an empty one where there is none.
Config optional_table(const fs::path& path, std::string& name) {
  name = path.string();
  return fs::exists(path) ? parse_json(read_file(name, kMaxFile), name) : Config::object();
}

std::string pooling_of(const fs::path& folder) {
  std::string name;
  const Config table = optional_table(folder / "1_Pooling" / "config.json", name);
  std::string mode;
  for (const auto& [key, value] : table.items()) {
    if (!key.starts_with("pooling_mode_") || value != true) continue;
    const auto* known = std::find_if(std::begin(kModes), std::end(kModes), [&](const auto& m) { return key == m[0]; });
    if (known == std::end(kModes) || !mode.empty()) {
      fail("{}: {} = true{} is not supported; expected one of mean, max and cls", name, key,
           mode.empty() ? "" : " beside another one");
    }
    mode = (*known)[1];
  }
  return mode.empty() ? "mean" : mode;
}

bool normalizes(const fs::path& folder) {
  std::string name;
  const Config modules = optional_table(folder / "modules.json", name);
  bool normalize = false;
  for (const auto& module : modules) {
    const std::string type = text_at(module, "type");
    const std::string kind = type.substr(std::min(type.size(), type.rfind('.') + 1));
    normalize = normalize || kind == "Normalize";
    if (kind != "Transformer" && kind != "Pooling" && kind != "Normalize") {
      fail("{}: the module '{}' is not supported; expected Transformer, Pooling and Normalize", name, printable(type));
    }
  }
  return normalize;
}

}  // namespace

Config read_sentence_files(const std::string& folder, int64_t longest) {
  std::string name;
  const Config about = optional_table(fs::path(folder) / "sentence_bert_config.json", name);
  const Config& length = member(about, "max_seq_length");
  if (!length.is_null() && (!length.is_number_unsigned() || length < 1 || length > longest)) {
    fail("{}: max_seq_length = {}: expected 1..{}, the positions that the model has", name, printable(length.dump()),
         longest);
  }
  if (flag_at(about, "do_lower_case", false)) fail("{}: do_lower_case = true is not supported", name);
  return {{"pooling", pooling_of(folder)},
          {"normalize", normalizes(folder)},
          {"max_length", length.is_null() ? Config(longest) : length}};
}

std::map<std::string, std::string> write_sentence_files(const Config& task, int64_t width) {
  Config modules = Config::array(), pooling = {{"word_embedding_dimension", width}};
  const auto add = [&](const std::string& kind, const std::string& path) {
    modules.push_back({{"idx", modules.size()},
                       {"name", std::to_string(modules.size())},
                       {"path", path},
                       {"type", "sentence_transformers.models." + kind}});
  };
  add("Transformer", "");
  add("Pooling", "1_Pooling");
  if (task.value("normalize", false)) add("Normalize", "2_Normalize");
  for (const auto& [key, mode] : kModes) pooling[key] = task.value("pooling", "mean") == mode;
  return {{"modules.json", modules.dump(2)},
          {"1_Pooling/config.json", pooling.dump(2)},
          {"sentence_bert_config.json", Config({{"max_seq_length", task.value("max_length", 512)}}).dump(2)}};
}

}  // namespace seqloom::huggingface
