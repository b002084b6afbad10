#include "io/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace seqloom {
namespace {

/// An open file descriptor that closes itself. Opening a pipe does not wait for its writer.
struct Descriptor {
  explicit Descriptor(const std::string& path) : fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
    if (fd < 0) fail("{}: cannot be opened: {}", path, std::strerror(errno));
  }
  ~Descriptor() { close(fd); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int fd;
};

}  // namespace

MappedFile::MappedFile(const std::string& path, Writes writes) {
  const Descriptor file(path);
  struct stat status {};
  if (fstat(file.fd, &status) != 0) fail("{}: {}", path, std::strerror(errno));
  if (!S_ISREG(status.st_mode)) fail("{}: is not a regular file", path);
  size_ = static_cast<size_t>(status.st_size);
  if (size_ == 0) return;  // an empty mapping is an error to mmap, but an empty file is not one here
  const bool copied = writes == Writes::kCopied;  // nothing is set aside for copies that are not expected
  void* address = mmap(nullptr, size_, copied ? PROT_READ | PROT_WRITE : PROT_READ,
                       copied ? MAP_PRIVATE | MAP_NORESERVE : MAP_PRIVATE, file.fd, 0);
  if (address == MAP_FAILED) fail("{}: cannot be mapped into memory: {}", path, std::strerror(errno));
  data_ = static_cast<const std::byte*>(address);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<std::byte*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

std::string read_file(const std::string& path, size_t limit) {
  const MappedFile file(path);
  if (file.size() > limit) fail("{}: {} bytes is over the limit of {}", path, file.size(), limit);
  return {reinterpret_cast<const char*>(file.bytes().data()), file.size()};
}

}  // namespace seqloom
