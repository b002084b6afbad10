#include "serve/metrics.h"

#include <algorithm>

namespace seqloom {

void Metrics::count(const std::string& route, int status, double seconds) {
  const std::lock_guard lock(mutex_);
  ++requests_[{route, status}];
  ++buckets_[static_cast<size_t>(std::lower_bound(kBounds.begin(), kBounds.end(), seconds) - kBounds.begin())];
  seconds_ += seconds;
}

std::string Metrics::text(const EngineCounts& engine, int64_t connections, int64_t states) const {
  std::string out;
  const auto head = [&](const char* name, const char* type, const char* help) {
    out += fmt::format("# HELP seqloom_{} {}\n# TYPE seqloom_{} {}\n", name, help, name, type);
  };
  const auto add = [&](const char* name, const char* type, const char* help, int64_t value) {
    head(name, type, help);
    out += fmt::format("seqloom_{} {}\n", name, value);
  };
  add("prompt_tokens_total", "counter", "Tokens of prompts that were read.", engine.prompt_tokens);
  add("tokens_total", "counter", "Tokens that were made.", engine.tokens);
  add("steps_total", "counter", "Steps of all running streams together.", engine.steps);
  add("streams_running", "gauge", "Streams that run now.", engine.running);
  add("streams_waiting", "gauge", "Requests that wait for a place.", engine.waiting);
  add("stream_bytes", "gauge", "Memory of the running streams.", engine.bytes);
  add("streams_finished_total", "counter", "Streams that came to their end.", engine.finished);
  add("streams_cancelled_total", "counter", "Streams whose client left or whose time was up.", engine.cancelled);
  add("streams_failed_total", "counter", "Streams that failed.", engine.failed);
  add("streams_refused_total", "counter", "Requests refused because the queue was full.", engine.refused);
  add("connections", "gauge", "Open connections.", connections);
  add("states", "gauge", "Saved states.", states);
  const std::lock_guard lock(mutex_);
  head("requests_total", "counter", "Answered requests.");
  for (const auto& [key, value] : requests_) {
    out += fmt::format("seqloom_requests_total{{route=\"{}\",status=\"{}\"}} {}\n", key.first, key.second, value);
  }
  head("request_seconds", "histogram", "From a request's arrival to the end of its answer.");
  int64_t total = 0;
  for (size_t i = 0; i < buckets_.size(); ++i) {
    total += buckets_[i];
    const std::string bound = i < kBounds.size() ? fmt::format("{}", kBounds[i]) : "+Inf";
    out += fmt::format("seqloom_request_seconds_bucket{{le=\"{}\"}} {}\n", bound, total);
  }
  return out + fmt::format("seqloom_request_seconds_sum {}\nseqloom_request_seconds_count {}\n", seconds_, total);
}

}  // namespace seqloom
