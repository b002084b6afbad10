#pragma once
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "decode/engine.h"
#include "decode/stop_strings.h"
#include "serve/served_model.h"

namespace seqloom {

/// One of a request's texts, as far as it has come.
struct Choice {
  std::string fresh;  // text that nobody has taken yet
  bool ended = false;
  bool by_length = false;  // else by a stop string or an end token
  Outcome outcome;         // once it has ended
};

/// The texts that the engine makes for one request. Tokens become text on the engine's thread, which never waits here;
/// what a slow client has not taken is at most its max_tokens of text. The destructor cancels what still runs.
class Answer {
 public:
  /// Hands the choices to the engine: `prompts[i]` n times. Throws Busy and UsageError.
  Answer(const ServedModel& model, Engine& engine, const CompletionRequest& request,
         const std::vector<std::vector<int64_t>>& prompts, std::shared_ptr<const Stream> from);
  ~Answer();
  Answer(const Answer&) = delete;
  Answer& operator=(const Answer&) = delete;

  size_t size() const;
  /// Waits until some choice has text or has ended, at most `patience`. Moves the texts out.
  /// Empty when nothing has happened.
  struct Piece {
    size_t choice;
    std::string text;
    bool ended;
  };
  std::vector<Piece> take(std::chrono::milliseconds patience);
  bool all_ended() const;
  /// After its end.
  const Choice& choice(size_t i) const;

 private:
  struct Shared;
  Engine& engine_;
  std::shared_ptr<Shared> shared_;  // the engine's callbacks may outlive the answer
  std::vector<int64_t> tickets_;
};

}  // namespace seqloom
