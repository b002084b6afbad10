#pragma once
#include <chrono>
#include <ctime>
#include <functional>
#include <memory>
#include <string>

#include "serve/answer.h"
#include "serve/language_service.h"

namespace seqloom {

/// A completion on its way, written as /v1/completions and /v1/chat/completions have it: whole, or event by event.
class Completion {
 public:
  using Clock = std::chrono::steady_clock;

  Completion(LanguageService& language, CompletionRequest request, Route route,
             const std::vector<std::vector<int64_t>>& prompts, Clock::time_point deadline);

  /// Waits for the end. Throws ApiError when it fails, the client leaves or the time is up.
  HttpReply whole(const std::function<bool()>& gone);
  /// Server-sent events up to "data: [DONE]"; what goes wrong on the way is an event with an error.
  void stream(const HttpReply::Write& write, const std::function<bool()>& gone);

 private:
  std::vector<Answer::Piece> next(const std::function<bool()>& gone);
  nlohmann::ordered_json envelope(const char* kind) const;
  nlohmann::ordered_json usage() const;
  nlohmann::ordered_json choice(size_t i, const std::string& text) const;
  nlohmann::ordered_json chunk(const Answer::Piece& piece);
  nlohmann::ordered_json finish_reason(size_t i) const;
  void write_events(const HttpReply::Write& write, const std::function<bool()>& gone);
  std::string prompt_text(size_t i) const;

  const ServedModel& model_;
  StateStore& states_;
  CompletionRequest request_;
  Route route_;
  Clock::time_point deadline_;
  std::string id_;
  std::time_t created_;
  std::vector<std::string> state_ids_;
  Answer answer_;
};

/// Throws ApiError when the client has left or the time is up.
void check_wanted(const std::function<bool()>& gone, Completion::Clock::time_point deadline);

/// JSON text; bytes that are not UTF-8 are replaced.
std::string text_of(const nlohmann::ordered_json& json);

}  // namespace seqloom
