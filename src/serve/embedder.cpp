#include "serve/embedder.h"

#include <algorithm>
#include <chrono>

namespace seqloom {

Embedder::Embedder(SentenceModel model, int64_t max_queue)
    : model_(std::move(model)),
      max_queue_(static_cast<size_t>(std::max<int64_t>(1, max_queue))),
      thread_([this] { work(); }) {}

Embedder::~Embedder() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

Tensor Embedder::embed(std::vector<std::string> texts, int64_t tokens, const std::function<void()>& check) {
  constexpr std::chrono::milliseconds kInterval(100);
  const size_t count = texts.size();
  auto job = std::make_shared<Job>();
  job->vectors = torch::empty({static_cast<int64_t>(count), width()});
  job->texts = std::move(texts);
  std::unique_lock lock(mutex_);
  if (queue_.size() >= max_queue_) {
    ++counts_.refused;
    throw Busy(fmt::format("{} requests wait already", queue_.size()));
  }
  queue_.push_back(job);
  wake_.notify_one();
  while (!news_.wait_for(lock, kInterval, [&] { return job->done == count || !job->error.empty(); })) {
    lock.unlock();
    try {
      check();
    } catch (...) {
      lock.lock();
      job->left = true;
      ++counts_.cancelled;
      throw;
    }
    lock.lock();
  }
  ++(job->error.empty() ? counts_.finished : counts_.failed);
  if (!job->error.empty()) fail("{}", job->error);
  counts_.prompt_tokens += tokens;
  return job->vectors;
}

EngineCounts Embedder::counts() const {
  const std::lock_guard lock(mutex_);
  EngineCounts counts = counts_;
  counts.waiting = static_cast<int64_t>(queue_.size());
  return counts;
}

void Embedder::work() {
  while (true) {
    const std::vector<Part> parts = take();
    if (parts.empty()) return;
    std::string error;
    try {
      embed_parts(parts);
    } catch (const std::exception& what) {
      error = what.what();
    }
    const std::lock_guard lock(mutex_);
    for (const Part& part : parts) {
      part.job->done += part.end - part.begin;
      if (!error.empty()) part.job->error = error;
    }
    news_.notify_all();
  }
}

/// Waits for texts. Empty: the embedder closes.
std::vector<Embedder::Part> Embedder::take() {
  constexpr size_t kTexts = 32;
  std::unique_lock lock(mutex_);
  std::vector<Part> parts;
  size_t count = 0;
  while (count == 0) {
    wake_.wait(lock, [this] { return closing_ || !queue_.empty(); });
    if (closing_) return {};
    while (count < kTexts && !queue_.empty()) {
      const auto job = queue_.front();
      queue_.pop_front();
      if (job->left || !job->error.empty()) continue;
      const size_t begin = job->taken;
      job->taken = std::min(job->texts.size(), begin + kTexts - count);
      count += job->taken - begin;
      parts.push_back({job, begin, job->taken});
      if (job->taken < job->texts.size()) queue_.push_back(job);  // behind the others
    }
  }
  return parts;
}

void Embedder::embed_parts(const std::vector<Part>& parts) {
  std::vector<std::string> texts;
  for (const auto& [job, begin, end] : parts) {
    for (size_t i = begin; i < end; ++i) texts.push_back(std::move(job->texts[i]));
  }
  int64_t at = 0;
  const Tensor vectors = model_.embed(texts);
  for (const auto& [job, begin, end] : parts) {
    const auto size = static_cast<int64_t>(end - begin);
    job->vectors.narrow(0, static_cast<int64_t>(begin), size).copy_(vectors.narrow(0, at, size));
    at += size;
  }
}

}  // namespace seqloom
