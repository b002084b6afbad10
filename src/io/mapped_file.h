#pragma once
#include <cstddef>
#include <span>
#include <string>

namespace seqloom {

/// A file mapped into memory. Throws Error naming the file when it cannot be.
class MappedFile {
 public:
  /// kCopied: a page that is written to all the same becomes this process's own; the file never changes.
  enum class Writes { kForbidden, kCopied };

  explicit MappedFile(const std::string& path, Writes writes = Writes::kForbidden);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  size_t size() const { return size_; }

 private:
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

/// The whole content of a file of at most `limit` bytes. Throws Error naming the file when it is larger or unreadable.
std::string read_file(const std::string& path, size_t limit = size_t{100} << 20);

}  // namespace seqloom
