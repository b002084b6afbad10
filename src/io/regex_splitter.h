#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace seqloom {

/// Cuts text into the matches of a Unicode regular expression and what lies between them (PCRE2). Bytes that are not
/// UTF-8 make pieces of their own.
class RegexSplitter {
 public:
  /// Throws Error that begins with `name` for a pattern that is not valid.
  RegexSplitter(const std::string& pattern, const std::string& name);

  std::vector<std::string_view> split(std::string_view text) const;

 private:
  void split_valid(std::string_view text, std::vector<std::string_view>& pieces) const;

  std::shared_ptr<void> code_, match_;  // pcre2_code, pcre2_match_data
  std::string name_;
};

}  // namespace seqloom
