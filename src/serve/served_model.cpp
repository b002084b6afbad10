#include "serve/served_model.h"

#include "io/json.h"

namespace seqloom {
namespace {

using Json = nlohmann::ordered_json;

/// A special token is written as a text or as an object with its content.
std::string token_text(const Config& value) {
  if (value.is_string()) return value.get<std::string>();
  const auto content = value.is_object() ? value.find("content") : value.end();
  return value.is_object() && content != value.end() && content->is_string() ? content->get<std::string>() : "";
}

/// The template's text: itself, or of several the one named "default".
std::string template_text(const Config& value) {
  if (value.is_string()) return value.get<std::string>();
  if (!value.is_array()) return "";
  for (const auto& entry : value) {
    const bool standard = entry.is_object() && entry.value("name", Config()) == "default";
    if (standard) return token_text(entry.value("template", Config()));
  }
  return "";
}

}  // namespace

ServedModel::ServedModel(LanguageModel model, std::string name, std::string id)
    : model_(std::move(model)), name_(std::move(name)), id_(std::move(id)) {
  const auto& attached = model_.checkpoint.attachments;
  const auto file = attached.find("chat_template.jinja");
  if (file != attached.end()) template_.emplace(file->second, "chat_template.jinja");
  read_tokenizer_config();
  read_ends();
}

void ServedModel::read_tokenizer_config() {
  const auto& attached = model_.checkpoint.attachments;
  const auto file = attached.find("tokenizer_config.json");
  if (file == attached.end()) return;
  const Config config = parse_json(file->second, "tokenizer_config.json");
  if (!config.is_object()) fail("tokenizer_config.json: not a JSON object");
  for (const auto& [key, value] : config.items()) {
    if (key.ends_with("_token") && !token_text(value).empty()) special_tokens_[key] = token_text(value);
  }
  const std::string text = template_text(config.value("chat_template", Config()));
  if (!template_ && !text.empty()) template_.emplace(text, "tokenizer_config.json: chat_template");
}

/// eos_token_id of the generation's or the model's configuration, and the tokenizer's eos_token.
void ServedModel::read_ends() {
  const auto& attached = model_.checkpoint.attachments;
  for (const char* name : {"generation_config.json", "config.json"}) {
    const auto file = attached.find(name);
    if (file == attached.end()) continue;
    const Config config = parse_json(file->second, name);
    const Config ids = config.is_object() ? config.value("eos_token_id", Config()) : Config();
    for (const auto& id : ids.is_array() ? ids : Config::array({ids})) {
      if (id.is_number_integer()) ends_.insert(id.get<int64_t>());
    }
  }
  if (special_tokens_.contains("eos_token")) {
    const auto ids = model_.tokenizer->encode(special_tokens_["eos_token"].get<std::string>());
    if (ids.size() == 1) ends_.insert(ids.front());
  }
}

std::string ServedModel::chat_text(const CompletionRequest& request) const {
  if (!template_) {
    throw ApiError(
        400,
        "the model has no chat template: neither tokenizer_config.json nor chat_template.jinja came with its "
        "checkpoint; use /v1/completions",
        "messages", "no_chat_template");
  }
  Json variables = request.template_variables;
  variables.update(special_tokens_);
  variables["messages"] = request.messages;
  variables["tools"] = request.tools;
  variables["documents"] = nullptr;
  variables["add_generation_prompt"] = true;
  try {
    return template_->render(variables);
  } catch (const Error& error) {
    throw ApiError(400, error.what(), "messages", "chat_template");
  }
}

std::vector<int64_t> ServedModel::encode(const CompletionRequest::Prompt& prompt, bool begins) const {
  if (const auto* tokens = std::get_if<std::vector<int64_t>>(&prompt)) return *tokens;
  const auto& text = std::get<std::string>(prompt);
  const auto ids = begins && !text.empty() ? model_.tokenizer->encode_framed(text) : model_.tokenizer->encode(text);
  return {ids.begin(), ids.end()};
}

}  // namespace seqloom
