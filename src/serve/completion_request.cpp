#include "serve/completion_request.h"

#include <algorithm>
#include <random>

#include "serve/members.h"

namespace seqloom {
namespace {

using Json = nlohmann::ordered_json;

std::vector<int64_t> read_tokens(const Json& list, const std::string& name) {
  std::vector<int64_t> tokens;
  for (const auto& token : list) {
    if (!token.is_number_unsigned() || token.get<uint64_t>() > INT32_MAX) refuse(name, "expected token ids");
    tokens.push_back(token.get<int64_t>());
  }
  return tokens;
}

/// A text, a list of texts, a list of tokens, or a list of those.
std::vector<CompletionRequest::Prompt> read_prompts(const Json& value) {
  constexpr const char* kName = "prompt";
  if (value.is_string()) return {value.get<std::string>()};
  if (!value.is_array() || value.empty()) refuse(kName, "expected a text, a list of texts or lists of token ids");
  if (value.front().is_number()) return {read_tokens(value, kName)};
  std::vector<CompletionRequest::Prompt> prompts;
  for (const auto& one : value) {
    if (one.is_string())
      prompts.emplace_back(one.get<std::string>());
    else if (one.is_array())
      prompts.emplace_back(read_tokens(one, kName));
    else
      refuse(kName, "expected a text, a list of texts or lists of token ids");
  }
  return prompts;
}

std::vector<std::string> read_stops(const Json& value) {
  constexpr size_t kMost = 16, kLongest = 1000;
  const Json list = value.is_string() ? Json::array({value}) : value;
  if (!list.is_array() || list.size() > kMost)
    refuse("stop", fmt::format("expected a text or a list of up to {}", kMost));
  std::vector<std::string> stops;
  for (const auto& stop : list) {
    const bool good = stop.is_string() && !stop.get_ref<const std::string&>().empty() &&
                      stop.get_ref<const std::string&>().size() <= kLongest;
    if (!good) refuse("stop", fmt::format("expected texts of 1 to {} bytes", kLongest));
    stops.push_back(stop.get<std::string>());
  }
  return stops;
}

SamplerOptions read_sampler(const Members& members) {
  SamplerOptions sampler;
  sampler.seed = static_cast<int64_t>((uint64_t{std::random_device{}()} << 31) ^ std::random_device{}());
  Fields fields;
  sampler.describe(fields);
  for (const auto& field : fields.list()) {
    const Json* value = members.find(field.name());
    if (value == nullptr) continue;
    if (!value->is_number()) refuse(field.name(), "expected a number");
    try {
      field.set(Config::parse(value->dump()), field.name());
    } catch (const Error& error) {
      throw ApiError(400, error.what(), field.name());
    }
  }
  return sampler;
}

/// Parameters that would change the answer, with the values that ask for nothing.
void refuse_unsupported(const Members& members) {
  const auto only = [&](const std::string& name, const std::vector<Json>& neutral, const std::string& why) {
    const Json* value = members.find(name);
    if (value != nullptr && std::find(neutral.begin(), neutral.end(), *value) == neutral.end()) refuse(name, why);
  };
  const std::string none = "not supported";
  only("presence_penalty", {0}, "only 0 is supported; there is repetition_penalty");
  only("frequency_penalty", {0}, "only 0 is supported; there is repetition_penalty");
  only("logprobs", {false, 0}, none);
  only("top_logprobs", {0}, none);
  only("logit_bias", {Json::object()}, none);
  only("suffix", {""}, none);
  only("best_of", {1}, "only 1 is supported");
  only("response_format", {Json::object({{"type", "text"}})}, "only text is supported");
  only("tool_choice", {"auto", "none"}, "only auto and none are supported");
  only("functions", {Json::array()}, "use tools");
}

/// Parts of a message that are all text become one text, which every template takes.
void join_text_parts(Json& message) {
  Json& content = message["content"];
  if (!content.is_array()) return;
  std::string text;
  for (const auto& part : content) {
    if (!part.is_object() || part.value("type", Json()) != "text" || !part.contains("text") ||
        !part["text"].is_string()) {
      refuse("messages", "only parts of type text are supported");
    }
    text += part["text"].get_ref<const std::string&>();
  }
  content = text;
}

void read_chat(const Members& members, CompletionRequest& request) {
  const Json* messages = members.find("messages");
  if (messages == nullptr || !messages->is_array() || messages->empty()) {
    refuse("messages", "expected a list of messages");
  }
  request.messages = *messages;
  for (auto& message : request.messages) {
    if (!message.is_object() || !message.contains("role") || !message["role"].is_string()) {
      refuse("messages", "every message needs a role");
    }
    if (message.contains("content")) join_text_parts(message);
  }
  const Json* tools = members.find("tools");
  if (tools != nullptr && !tools->is_array()) refuse("tools", "expected a list");
  if (tools != nullptr && !tools->empty()) request.tools = *tools;
  const Json* variables = members.find("chat_template_kwargs");
  if (variables != nullptr && !variables->is_object()) refuse("chat_template_kwargs", "expected a table");
  request.template_variables = variables == nullptr ? Json::object() : *variables;
}

void read_generation(const Members& members, const RequestLimits& limits, CompletionRequest& request) {
  refuse_unsupported(members);
  request.sampler = read_sampler(members);
  const int64_t standard = std::min(limits.default_tokens, limits.max_tokens);
  const int64_t tokens = members.integer("max_tokens", 0, limits.max_tokens, standard);
  request.max_tokens = members.integer("max_completion_tokens", 0, limits.max_tokens, tokens);
  request.n = members.integer("n", 1, limits.choices, 1);
  if (const Json* stop = members.find("stop")) request.stop = read_stops(*stop);
  request.stream = members.flag("stream");
  if (const Json* options = members.find("stream_options")) {
    if (!options->is_object()) refuse("stream_options", "expected a table");
    request.include_usage = Members(*options).flag("include_usage");
  }
  request.keep_state = members.flag("keep_state");
}

}  // namespace

CompletionRequest parse_completion(std::string_view body, Route route, const RequestLimits& limits) {
  const Json json = parse_body(body);
  const Members members(json);
  CompletionRequest request;
  request.state = members.text("state");
  if (route == Route::kChat) {
    read_chat(members, request);
    request.prompts.emplace_back(std::string());
  } else if (const Json* prompt = members.find("prompt")) {
    request.prompts = read_prompts(*prompt);
  } else {
    if (request.state.empty()) refuse("prompt", "missing");
    request.prompts.emplace_back(std::string());
  }
  if (route == Route::kState) {
    if (request.prompts.size() != 1) refuse("prompt", "a state is made of one prompt");
    request.keep_state = true;
    return request;
  }
  read_generation(members, limits, request);
  request.echo = route == Route::kCompletion && members.flag("echo");
  if (request.choices() > limits.choices) refuse("n", fmt::format("more than {} answers at once", limits.choices));
  return request;
}

}  // namespace seqloom
