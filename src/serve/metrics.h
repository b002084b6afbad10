#pragma once
#include <array>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "decode/engine.h"

namespace seqloom {

/// Counts of answered requests, as Prometheus reads them.
class Metrics {
 public:
  /// `route` is one of a fixed few, so that no client can make counters.
  void count(const std::string& route, int status, double seconds);
  /// The exposition format, version 0.0.4.
  std::string text(const EngineCounts& engine, int64_t connections, int64_t states) const;

 private:
  static constexpr std::array<double, 10> kBounds = {0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 10, 60, 300};

  mutable std::mutex mutex_;
  std::map<std::pair<std::string, int>, int64_t> requests_;
  std::array<int64_t, kBounds.size() + 1> buckets_{};
  double seconds_ = 0;
};

}  // namespace seqloom
