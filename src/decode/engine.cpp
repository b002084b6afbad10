#include "decode/engine.h"

#include <algorithm>
#include <utility>

namespace seqloom {

struct Engine::Job {
  int64_t ticket = 0;
  Request request;
  int64_t reserved = 0;  // bytes that its stream may come to hold
  Stream stream;
  int64_t read = 0, made = 0;  // tokens of the prompt that were read, tokens made
  bool begun = false, ended = false;

  bool reading() const { return !ended && read < static_cast<int64_t>(request.prompt.size()); }
  bool running() const { return begun && !ended && !reading(); }
};

namespace {

void check(const Request& request, const Decoder& model) {
  if (!request.on_end) misuse("a request needs on_end");
  if (request.max_tokens < 0) misuse("max_tokens = {}, expected at least 0", request.max_tokens);
  if (request.prompt.empty() && (request.from == nullptr || !request.from->logits.defined())) {
    misuse("the prompt is empty: give at least one token, or a stream to go on from");
  }
  for (const int64_t token : request.prompt) {
    if (token < 0 || token >= model.vocabulary()) {
      misuse("the prompt has token {}, which is outside 0..{}", token, model.vocabulary() - 1);
    }
  }
  const int64_t before = request.from == nullptr ? 0 : request.from->tokens();
  const auto prompt = static_cast<int64_t>(request.prompt.size());
  if (prompt > model.longest() - before) {
    misuse("the prompt has {} tokens behind {}, and the model can read no more than {}", prompt, before,
           model.longest());
  }
}

}  // namespace

Engine::Engine(std::shared_ptr<Decoder> model, const EngineOptions& options)
    : model_(std::move(model)), options_(options), thread_([this] { work(); }) {}

Engine::~Engine() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = draining_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

int64_t Engine::submit(Request request) {
  check(request, *model_);
  auto job = std::make_unique<Job>();
  const int64_t before = request.from == nullptr ? 0 : request.from->tokens();
  const int64_t most = before + static_cast<int64_t>(request.prompt.size()) + request.max_tokens;
  job->reserved = bytes_for(*model_, std::min(most, model_->longest()));
  job->request = std::move(request);
  const std::lock_guard lock(mutex_);
  const auto waiting = static_cast<int64_t>(waiting_.size());
  const bool full = waiting >= options_.max_queue + std::max<int64_t>(0, options_.max_streams - counts_.running);
  if (draining_ || full) {
    ++counts_.refused;
    throw Busy(draining_ ? "the engine is shutting down" : fmt::format("{} requests wait already", waiting));
  }
  job->ticket = next_ticket_++;
  const int64_t ticket = job->ticket;
  waiting_.push_back(std::move(job));
  wake_.notify_all();
  return ticket;
}

void Engine::cancel(int64_t ticket) {
  const std::lock_guard lock(mutex_);
  cancelled_.push_back(ticket);
  wake_.notify_all();
}

void Engine::drain() {
  std::unique_lock lock(mutex_);
  draining_ = true;
  wake_.notify_all();
  idle_.wait(lock, [this] { return waiting_.empty() && counts_.running == 0; });
}

EngineCounts Engine::counts() const {
  const std::lock_guard lock(mutex_);
  EngineCounts counts = counts_;
  counts.waiting = static_cast<int64_t>(waiting_.size());
  return counts;
}

void Engine::work() {
  while (take_in()) {
    read_prompts();
    step();
    keep_within_bounds();
    std::erase_if(jobs_, [](const auto& job) { return job->ended; });
  }
}

bool Engine::may_run(const Job& job) const {
  if (static_cast<int64_t>(jobs_.size()) >= options_.max_streams) return false;
  int64_t reserved = job.reserved;
  for (const auto& other : jobs_) reserved += other->reserved;
  return jobs_.empty() || reserved <= options_.max_bytes;  // one alone may try
}

/// Waits for something to do; ends what was cancelled and admits what may run. False: the engine closes.
bool Engine::take_in() {
  Jobs waited;
  std::vector<Job*> ended;
  bool closing = false;
  {
    std::unique_lock lock(mutex_);
    counts_.running = static_cast<int64_t>(jobs_.size());
    if (jobs_.empty() && waiting_.empty()) idle_.notify_all();
    wake_.wait(lock, [this] { return closing_ || !jobs_.empty() || !waiting_.empty(); });
    closing = closing_;
    const auto goes = [&](const std::unique_ptr<Job>& job) {
      return closing || std::find(cancelled_.begin(), cancelled_.end(), job->ticket) != cancelled_.end();
    };
    for (auto& job : waiting_) {
      if (goes(job)) waited.push_back(std::move(job));
    }
    std::erase(waiting_, nullptr);
    for (const auto& job : jobs_) {
      if (goes(job)) ended.push_back(job.get());
    }
    cancelled_.clear();
    while (!closing && !waiting_.empty() && may_run(*waiting_.front())) {
      jobs_.push_back(std::move(waiting_.front()));
      waiting_.pop_front();
    }
    counts_.running = static_cast<int64_t>(jobs_.size());
  }
  for (const auto& job : waited) ended.push_back(job.get());
  for (Job* job : ended) finish(*job, Outcome::Reason::kCancelled);
  return !closing;
}

/// What `work` throws fails this job and nothing else.
template <typename Work>
void Engine::attempt(Job& job, Work work) {
  try {
    work();
  } catch (const std::exception& error) {
    finish(job, Outcome::Reason::kFailed, error.what());
  } catch (...) {
    finish(job, Outcome::Reason::kFailed, "an exception of an unknown type");
  }
}

/// A piece of some prompt, and of more where prompts are short: running streams wait for two pieces at the most.
void Engine::read_prompts() {
  int64_t budget = Stream::kPiece, tokens = 0;
  for (const auto& job : jobs_) {
    if (budget <= 0) break;
    attempt(*job, [&] {
      const Request& request = job->request;
      if (!job->begun && !job->ended) {
        job->stream = request.from == nullptr ? empty_stream(*model_) : request.from->fork();
        job->begun = true;
      }
      if (!job->reading()) return;
      const auto piece = torch::ArrayRef<int64_t>(request.prompt).slice(job->read);
      const int64_t count = std::min(static_cast<int64_t>(piece.size()), Stream::kPiece);
      seqloom::read(*model_, job->stream, piece.slice(0, count));
      job->read += count;
      tokens += count;
      budget -= count;
    });
  }
  const std::lock_guard lock(mutex_);
  counts_.prompt_tokens += tokens;
}

/// Draws the job's next token and shows it. Whether it goes on with the token; if not, it has ended, or ends behind it.
Engine::Next Engine::draw_next(Job& job) {
  const Request& request = job.request;
  Next next;
  attempt(job, [&] {
    if (job.made >= request.max_tokens || job.stream.tokens() >= model_->longest()) {
      return finish(job, Outcome::Reason::kLength);
    }
    next.token = draw(job.stream, request.sampler);
    ++job.made;
    const bool stopped = request.on_token && !request.on_token(next.token);
    next.last = stopped || job.made == request.max_tokens;
    next.reason = stopped ? Outcome::Reason::kStopped : Outcome::Reason::kLength;
    next.reads = !next.last || request.keep_stream;
    if (!next.reads) finish(job, next.reason);
  });
  next.reads = next.reads && !job.ended;
  return next;
}

void Engine::step() {
  std::vector<Job*> jobs;
  std::vector<Next> next;
  std::vector<Stream*> streams;
  std::vector<int64_t> tokens;
  int64_t made = 0;
  for (const auto& job : jobs_) {
    if (!job->running()) continue;
    const int64_t before = job->made;
    const Next drawn = draw_next(*job);
    made += job->made - before;
    if (!drawn.reads) continue;
    jobs.push_back(job.get());
    next.push_back(drawn);
    streams.push_back(&job->stream);
    tokens.push_back(drawn.token);
  }
  std::string error;
  try {
    if (!jobs.empty()) read_one(*model_, streams, tokens);
  } catch (const std::exception& what) {
    error = fmt::format("the step of {} streams failed: {}", jobs.size(), what.what());
  }
  for (size_t i = 0; i < jobs.size(); ++i) {
    if (!error.empty()) {
      finish(*jobs[i], Outcome::Reason::kFailed, error);
    } else if (next[i].last) {
      finish(*jobs[i], next[i].reason);
    }
  }
  const std::lock_guard lock(mutex_);
  counts_.tokens += made;
  counts_.steps += jobs.empty() ? 0 : 1;
}

void Engine::keep_within_bounds() {
  int64_t bytes = 0;
  for (const auto& job : jobs_) bytes += job->ended ? 0 : job->stream.bytes();
  for (auto job = jobs_.rbegin(); job != jobs_.rend() && bytes > options_.max_bytes; ++job) {
    if ((*job)->ended) continue;
    const int64_t own = (*job)->stream.bytes();
    bytes -= own;
    finish(
        **job, Outcome::Reason::kFailed,
        fmt::format("its stream holds {} bytes after {} tokens, and with those that are older it passes the engine's "
                    "max_bytes = {}: raise that, or ask for less",
                    own, (*job)->stream.tokens(), options_.max_bytes));
  }
  const std::lock_guard lock(mutex_);
  counts_.bytes = bytes;
}

void Engine::finish(Job& job, Outcome::Reason reason, std::string message) {
  Outcome outcome;
  outcome.reason = reason;
  outcome.message = std::move(message);
  outcome.prompt_tokens = job.read;
  outcome.tokens = job.made;
  if (job.request.keep_stream && job.running() && reason != Outcome::Reason::kFailed) {
    if (job.stream.logits.defined()) job.stream.logits = job.stream.logits.clone();  // a row of a step's
    outcome.stream = std::make_shared<Stream>(std::move(job.stream));
  }
  job.stream = Stream();
  job.ended = true;
  {
    const std::lock_guard lock(mutex_);
    auto& count = reason == Outcome::Reason::kFailed      ? counts_.failed
                  : reason == Outcome::Reason::kCancelled ? counts_.cancelled
                                                          : counts_.finished;
    ++count;
  }
  try {
    job.request.on_end(std::move(outcome));
  } catch (...) {  // there is nobody left to tell
  }
}

}  // namespace seqloom
