#include "serve/completion.h"

#include <atomic>

namespace seqloom {
namespace {

using Json = nlohmann::ordered_json;

std::string new_id(Route route) {
  static const auto start = static_cast<int64_t>(std::time(nullptr));
  static std::atomic<int64_t> count = 0;
  return fmt::format("{}-{:x}{:06x}", route == Route::kChat ? "chatcmpl" : "cmpl", start, count++);
}

std::shared_ptr<const Stream> starting_point(const StateStore& states, const CompletionRequest& request) {
  if (request.state.empty()) return nullptr;
  return std::make_shared<const Stream>(states.load(request.state));
}

}  // namespace

std::string text_of(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

void check_wanted(const std::function<bool()>& gone, Completion::Clock::time_point deadline) {
  if (gone()) throw ApiError(499, "the client has closed its connection");
  if (Completion::Clock::now() > deadline) {
    throw ApiError(503, "the answer took longer than this server allows", "", "timeout");
  }
}

Completion::Completion(LanguageService& language, CompletionRequest request, Route route,
                       const std::vector<std::vector<int64_t>>& prompts, Clock::time_point deadline)
    : model_(language.model),
      states_(language.states),
      request_(std::move(request)),
      route_(route),
      deadline_(deadline),
      id_(new_id(route)),
      created_(std::time(nullptr)),
      state_ids_(prompts.size() * static_cast<size_t>(request_.n)),
      answer_(model_, language.engine, request_, prompts, starting_point(states_, request_)) {}

/// Waits for news. A client that left is noticed within the interval.
std::vector<Answer::Piece> Completion::next(const std::function<bool()>& gone) {
  constexpr std::chrono::milliseconds kInterval(100);
  while (true) {
    check_wanted(gone, deadline_);
    auto pieces = answer_.take(kInterval);
    for (const auto& piece : pieces) {
      if (!piece.ended) continue;
      const Outcome& outcome = answer_.choice(piece.choice).outcome;
      if (outcome.reason == Outcome::Reason::kFailed) throw ApiError(500, outcome.message, "", "failed");
      if (outcome.reason == Outcome::Reason::kCancelled) throw ApiError(503, "the server is stopping", "", "cancelled");
      if (request_.keep_state && outcome.stream) state_ids_[piece.choice] = states_.add(*outcome.stream).id;
    }
    if (!pieces.empty()) return pieces;
  }
}

Json Completion::envelope(const char* kind) const {
  return {{"id", id_}, {"object", kind}, {"created", created_}, {"model", model_.name()}};
}

Json Completion::usage() const {
  int64_t read = 0, made = 0;
  for (size_t i = 0; i < answer_.size(); ++i) {
    const Outcome& outcome = answer_.choice(i).outcome;
    if (i % static_cast<size_t>(request_.n) == 0) read += outcome.prompt_tokens;
    made += outcome.tokens;
  }
  return {{"prompt_tokens", read}, {"completion_tokens", made}, {"total_tokens", read + made}};
}

Json Completion::finish_reason(size_t i) const {
  return answer_.choice(i).by_length ? "length" : "stop";
}

std::string Completion::prompt_text(size_t i) const {
  const auto& prompt = request_.prompts[i / static_cast<size_t>(request_.n)];
  if (const auto* text = std::get_if<std::string>(&prompt)) return *text;
  std::string bytes;
  for (const int64_t token : std::get<std::vector<int64_t>>(prompt)) {
    bytes += model_.language().tokenizer->token_bytes(static_cast<int32_t>(token));
  }
  return bytes;
}

Json Completion::choice(size_t i, const std::string& text) const {
  Json json = {{"index", i}};
  if (route_ == Route::kChat)
    json["message"] = {{"role", "assistant"}, {"content", text}};
  else
    json["text"] = text;
  json["logprobs"] = nullptr;
  json["finish_reason"] = finish_reason(i);
  if (!state_ids_[i].empty()) json["state_id"] = state_ids_[i];
  return json;
}

HttpReply Completion::whole(const std::function<bool()>& gone) {
  std::vector<std::string> texts(answer_.size());
  for (size_t i = 0; request_.echo && i < texts.size(); ++i) texts[i] = prompt_text(i);
  while (!answer_.all_ended()) {
    for (auto& piece : next(gone)) texts[piece.choice] += piece.text;
  }
  Json json = envelope(route_ == Route::kChat ? "chat.completion" : "text_completion");
  json["choices"] = Json::array();
  for (size_t i = 0; i < texts.size(); ++i) json["choices"].push_back(choice(i, texts[i]));
  json["usage"] = usage();
  HttpReply reply;
  reply.body = text_of(json);
  return reply;
}

Json Completion::chunk(const Answer::Piece& piece) {
  Json part = {{"index", piece.choice}};
  if (route_ == Route::kChat)
    part["delta"] = piece.text.empty() ? Json::object() : Json{{"content", piece.text}};
  else
    part["text"] = piece.text;
  part["logprobs"] = nullptr;
  part["finish_reason"] = piece.ended ? finish_reason(piece.choice) : Json();
  if (piece.ended && !state_ids_[piece.choice].empty()) part["state_id"] = state_ids_[piece.choice];
  Json json = envelope(route_ == Route::kChat ? "chat.completion.chunk" : "text_completion");
  json["choices"] = Json::array({part});
  if (request_.include_usage) json["usage"] = nullptr;
  return json;
}

void Completion::write_events(const HttpReply::Write& write, const std::function<bool()>& gone) {
  const auto event = [&](const Json& json) {
    if (!write("data: " + text_of(json) + "\n\n")) throw ApiError(499, "the client has closed its connection");
  };
  for (size_t i = 0; i < answer_.size(); ++i) {
    Json first = chunk({i, request_.echo ? prompt_text(i) : "", false});
    if (route_ == Route::kChat) first["choices"][0]["delta"] = {{"role", "assistant"}, {"content", ""}};
    if (route_ == Route::kChat || request_.echo) event(first);
  }
  while (!answer_.all_ended()) {
    for (const auto& piece : next(gone)) event(chunk(piece));
  }
  if (!request_.include_usage) return;
  Json last = envelope(route_ == Route::kChat ? "chat.completion.chunk" : "text_completion");
  last["choices"] = Json::array();
  last["usage"] = usage();
  event(last);
}

void Completion::stream(const HttpReply::Write& write, const std::function<bool()>& gone) {
  try {
    write_events(write, gone);
  } catch (const ApiError& error) {
    if (!write("data: " + error_json(error) + "\n\n")) return;
  } catch (const std::exception& error) {  // such as a state that cannot be written
    if (!write("data: " + error_json(ApiError(500, error.what())) + "\n\n")) return;
  }
  write("data: [DONE]\n\n");
}

}  // namespace seqloom
