#include "decode/stop_strings.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace seqloom {

StopStrings::StopStrings(std::vector<std::string> stops) : stops_(std::move(stops)) {
  for (const auto& stop : stops_) {
    if (stop.empty()) misuse("a stop string must not be empty");
  }
}

std::string StopStrings::push(const std::string& piece) {
  if (found_) return "";
  held_ += piece;
  size_t cut = std::string::npos;
  for (const auto& stop : stops_) cut = std::min(cut, held_.find(stop));
  if (cut != std::string::npos) {
    found_ = true;
    std::string shown = held_.substr(0, cut);
    held_.clear();
    return shown;
  }
  size_t keep = 0;  // the longest end of the text that begins a stop string
  for (const auto& stop : stops_) {
    for (size_t n = std::min(stop.size() - 1, held_.size()); n > keep; --n) {
      if (held_.compare(held_.size() - n, n, stop, 0, n) == 0) keep = n;
    }
  }
  std::string shown = held_.substr(0, held_.size() - keep);
  held_.erase(0, shown.size());
  return shown;
}

std::string StopStrings::finish() {
  return std::exchange(held_, "");
}

}  // namespace seqloom
