#pragma once
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "decode/stream.h"

namespace seqloom {

/// The engine takes no more work now: its queue is full, or it drains. Try again later, or elsewhere.
struct Busy : Error {
  using Error::Error;
};

/// How a request ended.
struct Outcome {
  enum class Reason {
    kLength,     // max_tokens were made, or the model can read no more (Decoder::longest)
    kStopped,    // on_token said so
    kCancelled,  // cancel(), or the engine was destroyed
    kFailed,     // `message` says why
  };
  Reason reason = Reason::kLength;
  std::string message;             // of kFailed
  std::shared_ptr<Stream> stream;  // if the request keeps it: behind all its tokens, those of a failed one left out
  int64_t prompt_tokens = 0;       // read of the prompt
  int64_t tokens = 0;              // made
};

/// A prompt and what to make of it.
struct Request {
  std::vector<int64_t> prompt;         // may be empty when `from` has read something
  std::shared_ptr<const Stream> from;  // goes on from this stream, which is not changed; null: from nothing
  SamplerOptions sampler;
  int64_t max_tokens = 16;  // 0: the prompt is read and that is all
  bool keep_stream = false;
  /// Each token as it is made, on the engine's thread: it must not block. False: stop behind this token (a stop string,
  /// an end-of-text token, a client that is gone). What it throws fails this request.
  std::function<bool(int64_t token)> on_token;
  /// Exactly once, on the engine's thread. It must not throw.
  std::function<void(Outcome)> on_end;
};

struct EngineOptions {
  int64_t max_streams = 64, max_queue = 1024, max_bytes = int64_t{1} << 32;

  void describe(Fields& f) {
    f.add("max_streams", max_streams, "streams that run at once").at_least(1).at_most(1 << 20);
    f.add("max_queue", max_queue, "requests that may wait").at_least(0).at_most(1 << 24);
    f.add("max_bytes", max_bytes, "memory of all running streams").at_least(1);
  }
};

/// What /metrics shows. The sums count from the engine's start.
struct EngineCounts {
  int64_t waiting = 0, running = 0;                              // now
  int64_t bytes = 0;                                             // that running streams hold now
  int64_t prompt_tokens = 0, tokens = 0, steps = 0;              // sums
  int64_t finished = 0, cancelled = 0, failed = 0, refused = 0;  // requests, sums
};

/// Runs many independent streams through one model: continuous batching (Yu et al. 2022, Orca). One thread reads the
/// prompts of new requests in pieces and, between the pieces, makes one token for all running streams in one step, so
/// that a long prompt does not stall them and the weights are read once for all of them. Every stream's text is, token
/// for token, that of a Session alone.
///
/// Memory: the running streams hold at most max_bytes, counted after every turn of pieces and step. A request whose
/// stream may come to hold more than is left (bytes_for) waits for others to end; if it is alone it may try, and fails
/// when it does. A waiting request holds its prompt.
///
/// Errors: what one request does (its callback throws, its state is damaged, its prompt has a foreign token) ends that
/// request. An exception of the shared step itself, such as no memory, ends the streams that were in it.
class Engine {
 public:
  Engine(std::shared_ptr<Decoder> model, const EngineOptions& options);
  /// Cancels everything.
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /// Returns the ticket for `cancel`. Throws Busy; UsageError for a request that is wrong in itself. May be called from
  /// any thread, callbacks included.
  int64_t submit(Request request);
  /// Ends the request soon with kCancelled; nothing happens if it has ended. Any thread.
  void cancel(int64_t ticket);
  /// From now on submit throws Busy; returns when all accepted requests have ended. Not from a callback.
  void drain();
  EngineCounts counts() const;

 private:
  struct Job;  // a request on its way
  using Jobs = std::vector<std::unique_ptr<Job>>;
  struct Next {
    int64_t token = 0;
    bool reads = false, last = false;  // the stream reads the token; it ends behind it, for this reason
    Outcome::Reason reason = Outcome::Reason::kLength;
  };

  void work();
  bool take_in();
  bool may_run(const Job& job) const;
  void read_prompts();
  Next draw_next(Job& job);
  void step();
  void keep_within_bounds();
  template <typename Work>
  void attempt(Job& job, Work work);
  void finish(Job& job, Outcome::Reason reason, std::string message = "");

  std::shared_ptr<Decoder> model_;
  EngineOptions options_;
  mutable std::mutex mutex_;  // guards what follows, up to the jobs
  std::condition_variable wake_, idle_;
  std::deque<std::unique_ptr<Job>> waiting_;
  std::vector<int64_t> cancelled_;
  int64_t next_ticket_ = 1;
  bool draining_ = false, closing_ = false;
  EngineCounts counts_;
  Jobs jobs_;  // the engine's thread only: those that hold a stream, oldest first
  std::thread thread_;
};

}  // namespace seqloom
