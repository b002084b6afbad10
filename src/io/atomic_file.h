#pragma once
#include <cstddef>
#include <string>
#include <string_view>

namespace seqloom {

/// A file that comes into being whole or not at all: written under a temporary name in the same folder, synced and
/// renamed by commit(). Without commit() nothing remains. Throws Error naming the file.
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
  std::string path_, temporary_;
  int fd_ = -1;
};

void write_file_atomically(const std::string& path, std::string_view content);

}  // namespace seqloom
