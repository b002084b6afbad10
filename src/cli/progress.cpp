#include "cli/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>

namespace seqloom {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::string bar(double part) {
  constexpr int kWidth = 24;
  const int full = static_cast<int>(part * kWidth);
  std::string text;
  for (int i = 0; i < kWidth; ++i) text += i < full ? "█" : "░";
  return text;
}

}  // namespace

Progress::Progress(std::string label, int64_t total, int64_t begun)
    : label_(std::move(label)),
      total_(std::max<int64_t>(1, total)),
      begun_(begun),
      terminal_(isatty(STDERR_FILENO) == 1),
      start_(now()) {}

void Progress::update(int64_t done, const std::string& note) {
  const double time = now();
  const double pause = terminal_ ? 0.1 : 10;
  if (time - shown_ < pause && done < total_) return;
  shown_ = time;
  const double elapsed = time - start_;
  const double left =
      elapsed / static_cast<double>(std::max<int64_t>(1, done - begun_)) * static_cast<double>(total_ - done);
  const double part = static_cast<double>(done) / static_cast<double>(total_);
  if (terminal_) {
    fmt::print(stderr, "\r\033[K{} {} {:3.0f}% {}/{} {} ETA {}", label_, bar(part), 100 * part, done, total_, note,
               duration(left));
  } else {
    fmt::print(stderr, "{} {}/{} {} ETA {}\n", label_, done, total_, note, duration(left));
  }
  std::fflush(stderr);
}

void Progress::finish(const std::string& note) {
  fmt::print(stderr, "{}{} {} in {}\n", terminal_ ? "\r\033[K" : "", label_, note, duration(now() - start_));
}

std::string duration(double seconds) {
  const auto whole = static_cast<int64_t>(std::max(0.0, seconds) + 0.5);
  if (whole >= 3600) return fmt::format("{}h {:02}m", whole / 3600, whole / 60 % 60);
  if (whole >= 60) return fmt::format("{}m {:02}s", whole / 60, whole % 60);
  return fmt::format("{}s", whole);
}

std::string short_number(double value) {
  if (value >= 1e9) return fmt::format("{:.2f}G", value / 1e9);
  if (value >= 1e6) return fmt::format("{:.2f}M", value / 1e6);
  if (value >= 1e4) return fmt::format("{:.1f}k", value / 1e3);
  return fmt::format("{:.0f}", value);
}

}  // namespace seqloom
