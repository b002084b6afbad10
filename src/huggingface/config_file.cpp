#include "huggingface/config_file.h"

#include <algorithm>
#include <map>

#include "io/json.h"
#include "io/mapped_file.h"

namespace seqloom::huggingface {
namespace {

constexpr size_t kMaxConfig = size_t{4} << 20;

/// No model's output depends on these.
constexpr const char* kIdle[] = {"architectures",
                                 "model_type",
                                 "transformers_version",
                                 "torch_dtype",
                                 "dtype",
                                 "use_cache",
                                 "initializer_range",
                                 "bos_token_id",
                                 "eos_token_id",
                                 "pad_token_id",
                                 "sep_token_id",
                                 "_name_or_path",
                                 "attention_dropout",
                                 "hidden_dropout_prob",
                                 "attention_probs_dropout_prob",
                                 "classifier_dropout",
                                 "gradient_checkpointing",
                                 "pretraining_tp",
                                 "id2label",
                                 "label2id",
                                 "problem_type",
                                 "task_specific_params",
                                 "tokenizer_class",
                                 "output_attentions",
                                 "output_hidden_states",
                                 "return_dict",
                                 "chunk_size_feed_forward"};

/// Python writes an infinite float as the bare word Infinity, which is no JSON; transformers 5 as a table.
std::string without_bare_infinity(const std::string& text) {
  constexpr std::string_view kWord = "Infinity";
  std::string result;
  bool quoted = false;
  for (size_t at = 0; at < text.size(); ++at) {
    if (quoted && text[at] == '\\') result += text[at++];
    if (at < text.size() && text[at] == '"') quoted = !quoted;
    if (!quoted && text.compare(at, kWord.size(), kWord) == 0) {
      result += R"({"__float__": "Infinity"})";
      at += kWord.size() - 1;
    } else if (at < text.size()) {
      result += text[at];
    }
  }
  return result;
}

const std::map<std::string, std::string>& activations() {
  static const std::map<std::string, std::string> names = {{"gelu", "gelu"},
                                                           {"gelu_new", "gelu_tanh"},
                                                           {"gelu_pytorch_tanh", "gelu_tanh"},
                                                           {"gelu_fast", "gelu_tanh"},
                                                           {"silu", "silu"},
                                                           {"swish", "silu"},
                                                           {"relu", "relu"}};
  return names;
}

}  // namespace

ConfigFile open_config(const std::string& path) {
  ConfigFile file{parse_json(without_bare_infinity(read_file(path, kMaxConfig)), path), path, {}};
  if (!file.values.is_object()) fail("{}: not a JSON table", path);
  for (auto item = file.values.begin(); item != file.values.end();) {
    item = item->is_null() ? file.values.erase(item) : std::next(item);
  }
  return file;
}

void reject(const ConfigFile& file, const std::string& key, const Config& value, const std::string& problem) {
  fail("{}: {} = {}: {}", file.name, key, printable(value.dump(), 200), problem);
}

void expect_values(ConfigFile& file, const Config& expected) {
  for (const auto& [key, value] : expected.items()) {
    const auto found = file.values.find(key);
    if (found == file.values.end()) continue;
    if (*found != value) {
      reject(file, key, *found,
             value.is_null() ? "this is not supported; expected none" : "not supported; expected " + value.dump());
    }
    file.values.erase(found);
  }
}

void read_fields(ConfigFile& file, const Fields& fields, const std::vector<std::string>& idle) {
  expect_values(file, {{"quantization_config", nullptr},
                       {"is_encoder_decoder", false},
                       {"is_decoder", false},
                       {"add_cross_attention", false},
                       {"position_embedding_type", "absolute"}});
  Config table = Config::object();
  for (const auto& [key, value] : file.values.items()) {
    if (fields.find(key) != nullptr) {
      table[key] = value;
    } else if (std::find(std::begin(kIdle), std::end(kIdle), key) == std::end(kIdle) &&
               std::find(idle.begin(), idle.end(), key) == idle.end()) {
      file.unknown.push_back(key);
    }
  }
  try {
    fields.read(table, file.name);
  } catch (const UsageError& error) {  // "FILE.key = ...", and it is the file that is wrong, not the command
    fail("{}: {}", file.name, std::string_view(error.what()).substr(file.name.size() + 1));
  }
}

Config take_rope(ConfigFile& file) {
  Config rope = Config::object(), base = 10000.0;
  if (file.values.contains("rope_theta")) base = file.values["rope_theta"];
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    if (!file.values.contains(key)) continue;
    if (!file.values[key].is_object()) reject(file, key, file.values[key], "expected a table");
    rope.update(file.values[key]);
    file.values.erase(key);
  }
  file.values.erase("rope_theta");
  if (rope.contains("rope_theta")) base = rope["rope_theta"];
  if (!base.is_number() || base <= 0) reject(file, "rope_theta", base, "expected a number above 0");
  const std::string type = text_at(rope, "rope_type", text_at(rope, "type", "default"));
  std::vector<std::string> needed;
  if (type == "linear") needed = {"factor"};
  if (type == "llama3") needed = {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"};
  if (type != "default" && needed.empty()) {
    reject(file, "rope_type", type, "this scaling is not supported; expected default, linear or llama3");
  }
  if (rope.contains("partial_rotary_factor") && rope["partial_rotary_factor"] != 1) {
    reject(file, "partial_rotary_factor", rope["partial_rotary_factor"], "not supported; expected 1");
  }
  Config scaling = Config::object();
  if (!needed.empty()) scaling["rope_type"] = type;
  for (const auto& key : needed) {
    const Config& value = member(rope, key);
    if (!value.is_number() || value <= 0) reject(file, "rope_parameters." + key, value, "expected a number above 0");
    scaling[key] = value;
  }
  return {{"rope_base", base}, {"rope_scaling", scaling}};
}

Config rope_parameters(const Config& attention) {
  Config rope = attention.at("rope_scaling");
  if (!rope.contains("rope_type")) rope["rope_type"] = "default";
  rope["rope_theta"] = attention.at("rope_base");
  return rope;
}

std::string activation_of(const ConfigFile& file, const std::string& key, const std::string& name) {
  const auto found = activations().find(name);
  if (found != activations().end()) return found->second;
  std::string known;
  for (const auto& [theirs, ours] : activations()) known += (known.empty() ? "" : ", ") + theirs;
  reject(file, key, name, "this activation is not supported; expected one of " + known);
}

std::string activation_name(const std::string& activation) {
  return activation == "gelu_tanh" ? "gelu_new" : activation;
}

}  // namespace seqloom::huggingface
