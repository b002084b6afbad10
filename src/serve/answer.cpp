#include "serve/answer.h"

#include <algorithm>

namespace seqloom {
namespace {

/// Tokens to text that may be shown. On the engine's thread only.
struct Decoding {
  Utf8Stream characters;
  StopStrings stops;
  bool ended = false;  // by an end token
};

}  // namespace

struct Answer::Shared {
  mutable std::mutex mutex;
  std::condition_variable news;
  std::vector<Choice> choices;
  std::vector<bool> told;  // that the choice has ended
};

Answer::Answer(const ServedModel& model, Engine& engine, const CompletionRequest& request,
               const std::vector<std::vector<int64_t>>& prompts, std::shared_ptr<const Stream> from)
    : engine_(engine), shared_(std::make_shared<Shared>()) {
  shared_->choices.resize(prompts.size() * static_cast<size_t>(request.n));
  shared_->told.resize(shared_->choices.size());
  const auto tokenizer = model.language().tokenizer;
  try {
    for (size_t i = 0; i < shared_->choices.size(); ++i) {
      auto decoding = std::make_shared<Decoding>(Decoding{{}, StopStrings(request.stop)});
      Request job;
      job.prompt = prompts[i / static_cast<size_t>(request.n)];
      job.from = from;
      job.sampler = request.sampler;
      job.sampler.seed = (job.sampler.seed + static_cast<int64_t>(i % static_cast<size_t>(request.n))) & INT64_MAX;
      job.max_tokens = request.max_tokens;
      job.keep_stream = request.keep_state;
      const auto add = [shared = shared_, i](const std::string& text) {
        if (text.empty()) return;
        const std::lock_guard lock(shared->mutex);
        shared->choices[i].fresh += text;
        shared->news.notify_all();
      };
      job.on_token = [add, decoding, tokenizer, &model](int64_t token) {
        decoding->ended = model.ends_with(token);
        if (decoding->ended) return false;
        add(decoding->stops.push(decoding->characters.push(tokenizer->token_bytes(static_cast<int32_t>(token)))));
        return !decoding->stops.found();
      };
      job.on_end = [add, decoding, shared = shared_, i](Outcome outcome) {
        if (!decoding->stops.found()) {
          add(decoding->stops.push(decoding->characters.finish()));
          add(decoding->stops.finish());
        }
        const std::lock_guard lock(shared->mutex);
        shared->choices[i].by_length = !decoding->ended && !decoding->stops.found();
        shared->choices[i].outcome = std::move(outcome);
        shared->choices[i].ended = true;
        shared->news.notify_all();
      };
      tickets_.push_back(engine_.submit(std::move(job)));
    }
  } catch (...) {
    for (const int64_t ticket : tickets_) engine_.cancel(ticket);
    throw;
  }
}

Answer::~Answer() {
  for (const int64_t ticket : tickets_) engine_.cancel(ticket);
}

size_t Answer::size() const {
  return shared_->choices.size();
}

std::vector<Answer::Piece> Answer::take(std::chrono::milliseconds patience) {
  std::unique_lock lock(shared_->mutex);
  std::vector<Piece> pieces;
  const auto collect = [&] {
    for (size_t i = 0; i < shared_->choices.size(); ++i) {
      Choice& choice = shared_->choices[i];
      const bool ended = choice.ended && !shared_->told[i];
      if (choice.fresh.empty() && !ended) continue;
      pieces.push_back({i, std::exchange(choice.fresh, ""), ended});
      shared_->told[i] = choice.ended;
    }
    return !pieces.empty();
  };
  shared_->news.wait_for(lock, patience, collect);
  return pieces;
}

bool Answer::all_ended() const {
  const std::lock_guard lock(shared_->mutex);
  return std::all_of(shared_->told.begin(), shared_->told.end(), [](bool told) { return told; });
}

const Choice& Answer::choice(size_t i) const {
  return shared_->choices[i];
}

}  // namespace seqloom
