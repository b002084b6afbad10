#pragma once
#include <string>
#include <vector>

namespace seqloom {

/// Cuts a stream of text before the first of some stop strings, also one that arrives in pieces: text that may be the
/// beginning of a stop string is held back until that is decided.
class StopStrings {
 public:
  /// Throws UsageError for an empty stop string.
  explicit StopStrings(std::vector<std::string> stops);

  /// Takes a piece of text and returns what may be shown now.
  std::string push(const std::string& piece);
  /// What was held back, at the end of the stream.
  std::string finish();
  bool found() const { return found_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;
  bool found_ = false;
};

}  // namespace seqloom
