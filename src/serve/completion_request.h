#pragma once
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <variant>
#include <vector>

#include "decode/sampler.h"
#include "serve/errors.h"

namespace seqloom {

/// What a body of /v1/completions, /v1/chat/completions or /v1/states asks for.
struct CompletionRequest {
  using Prompt = std::variant<std::string, std::vector<int64_t>>;  // text or tokens

  std::vector<Prompt> prompts;
  nlohmann::ordered_json messages, tools, template_variables;  // of a chat
  SamplerOptions sampler;
  int64_t max_tokens = 0, n = 1;
  std::vector<std::string> stop;
  std::string state;  // goes on from this one; "": from nothing
  bool stream = false, include_usage = false, echo = false, keep_state = false;

  int64_t choices() const { return static_cast<int64_t>(prompts.size()) * n; }
};

struct RequestLimits {
  int64_t max_tokens = 4096, default_tokens = 256, choices = 16;
};

enum class Route { kCompletion, kChat, kState };

/// Reads a body. Parameters that would change the answer and are not supported are refused by name; those that cannot
/// (user, metadata ...) are passed over. Throws ApiError with status 400.
CompletionRequest parse_completion(std::string_view body, Route route, const RequestLimits& limits);

}  // namespace seqloom
