#pragma once
#include <cstdint>
#include <string>

namespace seqloom {

/// Progress of long work on standard error: a live bar on a terminal, otherwise a plain line every ten seconds.
class Progress {
 public:
  /// `begun` of the total is done already: a resumed run.
  Progress(std::string label, int64_t total, int64_t begun = 0);

  void update(int64_t done, const std::string& note);
  /// Ends the bar with a last line.
  void finish(const std::string& note);

 private:
  std::string label_;
  int64_t total_, begun_;
  bool terminal_;
  double start_, shown_ = 0;  // seconds; when something was last written
};

/// "1h 02m", "3m 05s", "12s".
std::string duration(double seconds);

/// "812", "12.3k", "4.56M".
std::string short_number(double value);

}  // namespace seqloom
