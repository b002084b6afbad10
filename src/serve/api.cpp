#include "serve/api.h"

#include <algorithm>
#include <thread>

#include "io/json.h"
#include "serve/embeddings.h"

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

/// Waits for a place.
class Slot {
 public:
  explicit Slot(std::counting_semaphore<>& slots) : slots_(slots) { slots_.acquire(); }
  ~Slot() { slots_.release(); }
  Slot(const Slot&) = delete;
  Slot& operator=(const Slot&) = delete;

 private:
  std::counting_semaphore<>& slots_;
};

}  // namespace

const Api::Entry Api::kRoutes[] = {
    {"POST", "/v1/completions", "completions", Needs::kDecoder, &Api::completions},
    {"POST", "/v1/chat/completions", "chat", Needs::kDecoder, &Api::chat_completions},
    {"POST", "/v1/embeddings", "embeddings", Needs::kEncoder, &Api::embeddings},
    {"GET", "/v1/models", "models", Needs::kNothing, &Api::models},
    {"GET", "/health", "health", Needs::kNothing, &Api::health},
    {"GET", "/metrics", "metrics", Needs::kNothing, &Api::metrics},
    {"GET", "/v1/states", "states", Needs::kDecoder, &Api::list_states},
    {"POST", "/v1/states", "states", Needs::kDecoder, &Api::make_state},
    {"GET", "/v1/states/*", "states", Needs::kDecoder, &Api::show_state},
    {"DELETE", "/v1/states/*", "states", Needs::kDecoder, &Api::delete_state},
    {"GET", "/v1/states/*/file", "states", Needs::kDecoder, &Api::download_state},
    {"POST", "/v1/states/*/fork", "states", Needs::kDecoder, &Api::fork_state},
};

Api::Api(Served served, ApiOptions options, std::function<int64_t()> connections)
    : served_(std::move(served)),
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
    check_served(entry->needs);
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

void Api::check_served(Needs needs) const {
  if (needs == Needs::kDecoder && served_.language == nullptr) {
    throw ApiError(400, fmt::format("{} is an encoder, which makes vectors: it writes no text", served_.name), "model",
                   "not_a_decoder");
  }
  if (needs == Needs::kEncoder && served_.embedder == nullptr) {
    throw ApiError(400, fmt::format("{} is a decoder, which makes text: it has no embeddings", served_.name), "model",
                   "not_an_encoder");
  }
}

/// The server stops only when the result is gone.
std::shared_ptr<void> Api::begin_answer() {
  ++busy_;
  std::shared_ptr<void> answering(nullptr, [this](void*) { --busy_; });
  check_not_draining();
  return answering;
}

Api::Parsed Api::parse(const std::string& body, Route route) {
  const Slot slot(slots_);
  const ServedModel& model = served_.language->model;
  Parsed parsed{parse_completion(body, route, options_.limits), {}};
  if (!parsed.request.state.empty() || parsed.request.keep_state) served_.language->states.check_kept();
  if (route == Route::kChat) parsed.request.prompts = {model.chat_text(parsed.request)};
  const bool begins = route != Route::kChat && parsed.request.state.empty();  // a template writes what begins a chat
  int64_t total = 0;
  for (const auto& prompt : parsed.request.prompts) {
    parsed.prompts.push_back(model.encode(prompt, begins));
    total += static_cast<int64_t>(parsed.prompts.back().size());
    if (parsed.prompts.back().empty() && parsed.request.state.empty()) {
      throw ApiError(400, "the prompt is empty; give some text, or a state to go on from", "prompt");
    }
    for (const int64_t token : parsed.prompts.back()) {
      if (token >= model.language().decoder->vocabulary()) {
        throw ApiError(400, fmt::format("there is no token {}", token), "prompt");
      }
    }
  }
  check_length(total, "prompt");
  if (!parsed.request.echo) parsed.request.prompts.clear();
  parsed.request.messages = parsed.request.tools = nullptr;
  return parsed;
}

void Api::check_length(int64_t tokens, const char* param) const {
  if (tokens <= options_.max_prompt) return;
  throw ApiError(400, fmt::format("the {} has {} tokens, and may have {}", param, tokens, options_.max_prompt), param,
                 "context_length_exceeded");
}

HttpReply Api::complete(HttpRequest& request, Route route) {
  check_not_draining();
  const auto deadline = Clock::now() + std::chrono::seconds(options_.request_seconds);
  Parsed parsed = parse(request.body, route);
  std::string().swap(request.body);
  const bool streams = parsed.request.stream;
  const auto answering = begin_answer();
  auto completion =
      std::make_shared<Completion>(*served_.language, std::move(parsed.request), route, parsed.prompts, deadline);
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

HttpReply Api::embeddings(HttpRequest& request) {
  check_not_draining();
  const auto deadline = Clock::now() + std::chrono::seconds(options_.request_seconds);
  EmbeddingRequest parsed;
  int64_t tokens = 0;
  {
    const Slot slot(slots_);
    parsed = parse_embedding(request.body, served_.embedder->width());
    for (const auto& text : parsed.texts) tokens += served_.embedder->tokens(text);
  }
  check_length(tokens, "input");
  std::string().swap(request.body);
  const auto answering = begin_answer();
  const Tensor vectors =
      served_.embedder->embed(std::move(parsed.texts), tokens, [&] { check_wanted(request.gone, deadline); });
  return embedding_reply(vectors, parsed.base64, served_.name, tokens);
}

HttpReply Api::models(HttpRequest&) {
  const Json model = {{"id", served_.name}, {"object", "model"}, {"created", 0}, {"owned_by", "seqloom"}};
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
  const bool decodes = served_.language != nullptr;
  reply.body = metrics_.text(decodes ? served_.language->engine.counts() : served_.embedder->counts(), connections_(),
                             decodes ? served_.language->states.count() : 0);
  return reply;
}

HttpReply Api::list_states(HttpRequest&) {
  Json list = Json::array();
  for (const auto& state : served_.language->states.list()) list.push_back(state_json(state));
  return json_reply({{"object", "list"}, {"data", list}});
}

/// From a prompt, behind another state where one is named; or a file that was downloaded before.
HttpReply Api::make_state(HttpRequest& request) {
  check_not_draining();
  StateStore& states = served_.language->states;
  states.check_kept();
  if (request.content_type == "application/octet-stream") return json_reply(state_json(states.add_file(request.body)));
  Parsed parsed = parse(request.body, Route::kState);
  const auto answering = begin_answer();
  const auto deadline = Clock::now() + std::chrono::seconds(options_.request_seconds);
  Completion completion(*served_.language, std::move(parsed.request), Route::kState, parsed.prompts, deadline);
  const Json made = Json::parse(completion.whole(request.gone).body);
  return json_reply(state_json(states.info(made["choices"][0]["state_id"].get<std::string>())));
}

HttpReply Api::show_state(HttpRequest& request) {
  return json_reply(state_json(served_.language->states.info(state_id(request))));
}

HttpReply Api::download_state(HttpRequest& request) {
  HttpReply reply;
  reply.content_type = "application/octet-stream";
  reply.body = served_.language->states.file(state_id(request));
  return reply;
}

HttpReply Api::delete_state(HttpRequest& request) {
  served_.language->states.remove(state_id(request));
  return json_reply({{"id", state_id(request)}, {"object", "state"}, {"deleted", true}});
}

HttpReply Api::fork_state(HttpRequest& request) {
  check_not_draining();
  return json_reply(state_json(served_.language->states.fork(state_id(request))));
}

}  // namespace seqloom
