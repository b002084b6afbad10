#include "serve/api.h"

#include <algorithm>
#include <thread>

#include "io/json.h"

namespace seqloom {
namespace {

using Json = nlohmann::ordered_json;
using Clock = Completion::Clock;

HttpReply json_reply(const Json& json) {
  HttpReply reply;
  reply.body = text_of(json);
  return reply;
}

/// Takes the same time wherever two keys differ.
bool same_secret(const std::string& a, const std::string& b) {
  unsigned difference = a.size() == b.size() ? 0 : 1;
  for (size_t i = 0; i < a.size(); ++i) {
    difference |= static_cast<unsigned char>(a[i]) ^ static_cast<unsigned char>(b.empty() ? 0 : b[i % b.size()]);
  }
  return difference == 0;
}

/// The part of a path that stands for '*'; nullopt where the path does not fit.
std::optional<std::string> match(std::string_view pattern, std::string_view path) {
  const size_t star = pattern.find('*');
  if (star == std::string_view::npos) return pattern == path ? std::optional<std::string>("") : std::nullopt;
  const std::string_view before = pattern.substr(0, star), after = pattern.substr(star + 1);
  if (path.size() < before.size() + after.size() || !path.starts_with(before) || !path.ends_with(after)) return {};
  const std::string_view id = path.substr(before.size(), path.size() - before.size() - after.size());
  return id.empty() || id.find('/') != std::string_view::npos ? std::nullopt : std::optional<std::string>(id);
}

std::string state_id(const HttpRequest& request) {
  constexpr std::string_view kFolder = "/v1/states/";
  const std::string rest = request.path.substr(kFolder.size());
  return rest.substr(0, rest.find('/'));
}

Json state_json(const StateInfo& state) {
  return {{"id", state.id},
          {"object", "state"},
          {"created", state.created},
          {"tokens", state.tokens},
          {"bytes", state.bytes}};
}

}  // namespace

const Api::Entry Api::kRoutes[] = {
    {"POST", "/v1/completions", "completions", &Api::completions},
    {"POST", "/v1/chat/completions", "chat", &Api::chat_completions},
    {"POST", "/v1/embeddings", "embeddings", &Api::embeddings},
    {"GET", "/v1/models", "models", &Api::models},
    {"GET", "/health", "health", &Api::health},
    {"GET", "/metrics", "metrics", &Api::metrics},
    {"GET", "/v1/states", "states", &Api::list_states},
    {"POST", "/v1/states", "states", &Api::make_state},
    {"GET", "/v1/states/*", "states", &Api::show_state},
    {"DELETE", "/v1/states/*", "states", &Api::delete_state},
    {"GET", "/v1/states/*/file", "states", &Api::download_state},
    {"POST", "/v1/states/*/fork", "states", &Api::fork_state},
};

Api::Api(const ServedModel& model, Engine& engine, StateStore& states, ApiOptions options,
         std::function<int64_t()> connections)
    : model_(model),
      engine_(engine),
      states_(states),
      options_(std::move(options)),
      connections_(std::move(connections)),
      slots_(std::max(1U, std::thread::hardware_concurrency())) {}

const Api::Entry* Api::find(const std::string& method, const std::string& path, bool& known_path) {
  known_path = false;
  for (const Entry& entry : kRoutes) {
    if (!match(entry.path, path)) continue;
    known_path = true;
    if (method == entry.method) return &entry;
  }
  return nullptr;
}

bool Api::has_key(const std::string& authorization) const {
  constexpr std::string_view kScheme = "Bearer ";
  return authorization.starts_with(kScheme) && same_secret(authorization.substr(kScheme.size()), options_.key);
}

std::optional<HttpReply> Api::gate(const HttpRequest& request) {
  const auto refuse = [&](const ApiError& error) {
    metrics_.count("refused", error.status, 0);
    return error_reply(error);
  };
  if (!options_.key.empty() && request.path != "/health" && !has_key(request.authorization)) {
    return refuse(
        ApiError(401, "the API key is missing or wrong: send 'Authorization: Bearer KEY'", "", "invalid_api_key"));
  }
  bool known_path = false;
  if (find(request.method, request.path, known_path) != nullptr) return std::nullopt;
  if (known_path) return refuse(ApiError(405, "this route does not take " + request.method));
  return refuse(ApiError(404, "there is no route " + printable(request.path), "", "not_found"));
}

HttpReply Api::handle(HttpRequest& request) {
  const auto begin = Clock::now();
  bool known_path = false;
  const Entry* entry = find(request.method, request.path, known_path);
  const auto failed = [&](const ApiError& error) { return counted(entry->name, error_reply(error), begin); };
  try {
    return counted(entry->name, (this->*entry->call)(request), begin);
  } catch (const ApiError& error) {
    return failed(error);
  } catch (const Busy& error) {
    return failed(draining_ ? ApiError(503, "the server is stopping", "", "stopping")
                            : ApiError(429, error.what(), "", "queue_full"));
  } catch (const UsageError& error) {
    return failed(ApiError(400, error.what()));
  } catch (const std::bad_alloc&) {
    return failed(ApiError(503, "out of memory"));
  } catch (const std::exception& error) {
    return failed(ApiError(500, error.what()));
  }
}

/// Counts a reply when it is made, or when its stream ends.
HttpReply Api::counted(const char* route, HttpReply reply, Clock::time_point begin) {
  const auto count = [this, route, status = reply.status, begin] {
    metrics_.count(route, status, std::chrono::duration<double>(Clock::now() - begin).count());
  };
  if (!reply.stream) {
    count();
    return reply;
  }
  reply.stream = [count, stream = std::move(reply.stream)](const HttpReply::Write& write) {
    stream(write);
    count();
  };
  return reply;
}

void Api::check_not_draining() const {
  if (draining_) throw ApiError(503, "the server is stopping", "", "stopping");
}

Api::Parsed Api::parse(const std::string& body, Route route) {
  slots_.acquire();
  struct Release {
    std::counting_semaphore<>& slots;
    ~Release() { slots.release(); }
  } release{slots_};
  Parsed parsed{parse_completion(body, route, options_.limits), {}};
  if (!parsed.request.state.empty() || parsed.request.keep_state) states_.check_kept();
  if (route == Route::kChat) parsed.request.prompts = {model_.chat_text(parsed.request)};
  int64_t total = 0;
  for (const auto& prompt : parsed.request.prompts) {
    parsed.prompts.push_back(model_.encode(prompt));
    total += static_cast<int64_t>(parsed.prompts.back().size());
    if (parsed.prompts.back().empty() && parsed.request.state.empty()) {
      throw ApiError(400, "the prompt is empty; give some text, or a state to go on from", "prompt");
    }
    for (const int64_t token : parsed.prompts.back()) {
      if (token >= model_.language().decoder->vocabulary()) {
        throw ApiError(400, fmt::format("there is no token {}", token), "prompt");
      }
    }
  }
  if (total > options_.max_prompt) {
    throw ApiError(400, fmt::format("the prompt has {} tokens, and may have {}", total, options_.max_prompt), "prompt",
                   "context_length_exceeded");
  }
  parsed.request.prompts.clear();
  parsed.request.messages = parsed.request.tools = nullptr;
  return parsed;
}

HttpReply Api::complete(HttpRequest& request, Route route) {
  check_not_draining();
  const auto deadline = Clock::now() + std::chrono::seconds(options_.request_seconds);
  Parsed parsed = parse(request.body, route);
  std::string().swap(request.body);
  const bool streams = parsed.request.stream;
  const std::shared_ptr<void> answering(nullptr, [this](void*) { --busy_; });
  ++busy_;
  check_not_draining();
  auto completion = std::make_shared<Completion>(model_, engine_, states_, std::move(parsed.request), route,
                                                 std::move(parsed.prompts), deadline);
  if (!streams) return completion->whole(request.gone);
  HttpReply reply;
  reply.content_type = "text/event-stream";
  reply.headers.emplace_back("Cache-Control", "no-cache");
  reply.stream = [completion, answering, gone = request.gone](const HttpReply::Write& write) {
    completion->stream(write, gone);
  };
  return reply;
}

HttpReply Api::completions(HttpRequest& request) {
  return complete(request, Route::kCompletion);
}
HttpReply Api::chat_completions(HttpRequest& request) {
  return complete(request, Route::kChat);
}

HttpReply Api::embeddings(HttpRequest&) {
  throw ApiError(400, fmt::format("{} is a decoder, which makes text: it has no embeddings", model_.name()), "model",
                 "not_an_encoder");
}

HttpReply Api::models(HttpRequest&) {
  const Json model = {{"id", model_.name()}, {"object", "model"}, {"created", 0}, {"owned_by", "seqloom"}};
  return json_reply({{"object", "list"}, {"data", Json::array({model})}});
}

HttpReply Api::health(HttpRequest&) {
  HttpReply reply = json_reply({{"status", draining_ ? "stopping" : "ok"}});
  reply.status = draining_ ? 503 : 200;
  return reply;
}

HttpReply Api::metrics(HttpRequest&) {
  HttpReply reply;
  reply.content_type = "text/plain; version=0.0.4";
  int64_t states = 0;
  try {
    states = static_cast<int64_t>(states_.list().size());
  } catch (const ApiError&) {  // none are kept
  }
  reply.body = metrics_.text(engine_.counts(), connections_(), states);
  return reply;
}

HttpReply Api::list_states(HttpRequest&) {
  Json list = Json::array();
  for (const auto& state : states_.list()) list.push_back(state_json(state));
  return json_reply({{"object", "list"}, {"data", list}});
}

/// From a prompt, behind another state where one is named; or a file that was downloaded before.
HttpReply Api::make_state(HttpRequest& request) {
  check_not_draining();
  states_.check_kept();
  if (request.content_type == "application/octet-stream") return json_reply(state_json(states_.add_file(request.body)));
  Parsed parsed = parse(request.body, Route::kState);
  ++busy_;
  const std::shared_ptr<void> answering(nullptr, [this](void*) { --busy_; });
  const auto deadline = Clock::now() + std::chrono::seconds(options_.request_seconds);
  Completion completion(model_, engine_, states_, std::move(parsed.request), Route::kState, std::move(parsed.prompts),
                        deadline);
  const Json made = Json::parse(completion.whole(request.gone).body);
  return json_reply(state_json(states_.info(made["choices"][0]["state_id"].get<std::string>())));
}

HttpReply Api::show_state(HttpRequest& request) {
  return json_reply(state_json(states_.info(state_id(request))));
}

HttpReply Api::download_state(HttpRequest& request) {
  HttpReply reply;
  reply.content_type = "application/octet-stream";
  reply.body = states_.file(state_id(request));
  return reply;
}

HttpReply Api::delete_state(HttpRequest& request) {
  states_.remove(state_id(request));
  return json_reply({{"id", state_id(request)}, {"object", "state"}, {"deleted", true}});
}

HttpReply Api::fork_state(HttpRequest& request) {
  check_not_draining();
  return json_reply(state_json(states_.fork(state_id(request))));
}

}  // namespace seqloom
