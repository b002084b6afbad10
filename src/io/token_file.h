#pragma once
#include <cstdint>
#include <string>

#include "io/mapped_file.h"
#include "io/tokenizer.h"

namespace seqloom {

/// The tokens of a text file, memory-mapped: never in RAM as a whole. For the byte tokenizer the text itself is mapped;
/// otherwise the text is encoded once, piece by piece, into `cache_path` (two or four bytes a token), which is made
/// anew when text or tokenizer have changed.
class TokenFile {
 public:
  /// Throws Error naming the file when it is missing, empty or cannot be cached.
  TokenFile(const std::string& path, const Tokenizer& tokenizer, const std::string& cache_path);

  int64_t size() const { return size_; }
  /// Tokens begin .. begin+count-1 into out. The range must lie inside the file.
  void read(int64_t begin, int64_t count, int64_t* out) const;

 private:
  std::string path_;  // of what is mapped
  int64_t vocabulary_;
  MappedFile file_;
  int64_t header_ = 0, width_ = 1, size_ = 0;  // bytes before the tokens, bytes a token, tokens
};

}  // namespace seqloom
