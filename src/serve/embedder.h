#pragma once
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "decode/engine.h"
#include "tasks/sentence.h"

namespace seqloom {

/// Makes the vectors of many requests' texts on one thread: some texts of each request in turn, packed together, so
/// that a long list holds nobody up.
class Embedder {
 public:
  /// At most `max_queue` requests at once.
  Embedder(SentenceModel model, int64_t max_queue);
  ~Embedder();
  Embedder(const Embedder&) = delete;
  Embedder& operator=(const Embedder&) = delete;

  int64_t width() const { return model_.encoder->width(); }
  /// Tokens of a text that the model reads. Throws UsageError when there are none.
  int64_t tokens(const std::string& text) const { return static_cast<int64_t>(model_.encode(text).size()); }
  /// [n, D] of texts with so many tokens together. Waits for them; what `check` throws, which is called some times a
  /// second, gives the request up. Throws Busy where too many wait, Error where the model fails. Any thread.
  Tensor embed(std::vector<std::string> texts, int64_t tokens, const std::function<void()>& check);
  /// Requests as streams, tokens of texts as those of prompts.
  EngineCounts counts() const;

 private:
  struct Job {
    std::vector<std::string> texts;
    Tensor vectors;              // [n, D]; the embedder's thread writes it
    size_t taken = 0, done = 0;  // texts
    bool left = false;           // nobody waits any more
    std::string error;
  };
  /// Texts [begin, end) of a job.
  struct Part {
    std::shared_ptr<Job> job;
    size_t begin, end;
  };

  void work();
  std::vector<Part> take();
  void embed_parts(const std::vector<Part>& parts);

  SentenceModel model_;
  size_t max_queue_;
  mutable std::mutex mutex_;  // guards what follows, and the jobs but for texts that were taken and vectors
  std::condition_variable wake_, news_;
  std::deque<std::shared_ptr<Job>> queue_;  // those with texts that nobody has taken
  EngineCounts counts_;
  bool closing_ = false;
  std::thread thread_;
};

}  // namespace seqloom
