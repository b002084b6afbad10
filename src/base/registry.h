#pragma once
#include <algorithm>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace seqloom {

/// The name of `names` that is nearest to `word` by edit distance, or "" where none is near. For error messages.
std::string nearest(std::string_view word, const std::vector<std::string>& names);

/// Things of one kind by name, filled by static initialisers: one line in the file of each thing.
template <typename Entry>
class Registry {
 public:
  explicit Registry(std::string what) : what_(std::move(what)) {}

  bool add(std::string name, Entry entry) { return entries_.emplace(std::move(name), std::move(entry)).second; }

  /// Throws UsageError that lists what there is.
  const Entry& get(const std::string& name) const {
    if (auto found = entries_.find(name); found != entries_.end()) return found->second;
    const std::string near = nearest(name, names());
    misuse("there is no {} '{}'{}; there are: {}", what_, name, near.empty() ? "" : ", did you mean '" + near + "'?",
           joined(names()));
  }
  bool contains(const std::string& name) const { return entries_.count(name) > 0; }

  std::vector<std::string> names() const {
    std::vector<std::string> result;
    for (const auto& [name, entry] : entries_) result.push_back(name);
    return result;
  }

 private:
  static std::string joined(const std::vector<std::string>& names) {
    std::string text;
    for (const auto& name : names) text += (text.empty() ? "" : ", ") + name;
    return text;
  }

  std::string what_;
  std::map<std::string, Entry> entries_;
};

}  // namespace seqloom
