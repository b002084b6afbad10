#pragma once
#include <cstddef>
#include <string>
#include <string_view>

namespace seqloom {

/// A file that comes into being whole or not at all: written under a temporary name in the same folder, synced and
/// renamed by commit(). Without commit() nothing remains and an older file stays. A link is followed, and a device or a
/// pipe (/dev/stdout) is written as it is. Throws Error naming the file.
class AtomicFile {
 public:
  explicit AtomicFile(std::string path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, size_t size);
  void write(std::string_view text) { write(text.data(), text.size()); }
  void commit();

 private:
  void discard();

  std::string path_;
  std::string target_, temporary_;  // temporary_ is empty for a device or a pipe
  int fd_ = -1;
};

void write_file_atomically(const std::string& path, std::string_view content);

}  // namespace seqloom
