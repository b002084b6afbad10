#include "io/token_file.h"

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "base/error.h"
#include "base/random.h"
#include "io/atomic_file.h"

namespace seqloom {
namespace {

constexpr size_t kPiece = size_t{1} << 20;  // text encoded at once

/// What a cache begins with; the tokens follow to its end. It fits exactly one text and one tokenizer.
struct CacheHeader {
  char magic[8] = {'s', 'e', 'q', 'l', 't', 'o', 'k', '2'};
  uint64_t key = 0;
  uint64_t width = 0;  // bytes a token
};

uint64_t cache_key(const std::string& path, const MappedFile& text, const Tokenizer& tokenizer) {
  std::error_code error;
  const auto changed = std::filesystem::last_write_time(path, error);
  if (error) fail("{}: {}", path, error.message());
  return mixed(mixed(text.size(), static_cast<uint64_t>(changed.time_since_epoch().count())), tokenizer.fingerprint());
}

/// Whether the cache exists and begins with `expected`.
bool is_current(const std::string& cache_path, const CacheHeader& expected) {
  std::error_code error;
  if (!std::filesystem::exists(cache_path, error)) return false;
  const MappedFile cache(cache_path);
  return cache.size() >= sizeof expected && std::memcmp(cache.bytes().data(), &expected, sizeof expected) == 0 &&
         (cache.size() - sizeof expected) % expected.width == 0;
}

bool is_space(char c) {
  return c == ' ' || (c >= '\t' && c <= '\r');
}

/// Where a piece of at most kPiece bytes ends: behind a single line's end, where no pre-tokenizer's word goes across.
size_t piece_length(std::string_view rest) {
  if (rest.size() <= kPiece) return rest.size();
  for (size_t end = kPiece; end >= 2; --end) {
    if (rest[end - 1] == '\n' && !is_space(rest[end - 2]) && !is_space(rest[end])) return end;
  }
  size_t end = kPiece;  // one endless line: at least no character is cut
  while (end > 1 && (static_cast<unsigned char>(rest[end]) & 0xc0) == 0x80) --end;
  return end;
}

void write_cache(const std::string& cache_path, std::string_view text, const Tokenizer& tokenizer,
                 const CacheHeader& header) {
  AtomicFile file(cache_path);
  file.write(&header, sizeof header);
  std::string packed;
  while (!text.empty()) {
    const size_t length = piece_length(text);
    packed.clear();
    for (const int32_t id : tokenizer.encode(text.substr(0, length))) {
      for (uint64_t b = 0; b < header.width; ++b) packed += static_cast<char>(id >> (8 * b) & 0xff);
    }
    file.write(packed);
    text.remove_prefix(length);
  }
  file.commit();
}

}  // namespace

TokenFile::TokenFile(const std::string& path, const Tokenizer& tokenizer, const std::string& cache_path)
    : path_(path), vocabulary_(tokenizer.vocabulary()), file_(path) {
  if (file_.size() == 0) fail("{}: is empty; give a text file with something in it", path);
  if (tokenizer.kind() != "bytes") {
    CacheHeader header;
    header.key = cache_key(path, file_, tokenizer);
    header.width = vocabulary_ <= 0x10000 ? 2 : 4;
    if (!is_current(cache_path, header)) {
      write_cache(cache_path, {reinterpret_cast<const char*>(file_.bytes().data()), file_.size()}, tokenizer, header);
    }
    path_ = cache_path;
    file_ = MappedFile(cache_path);
    header_ = sizeof header;
    width_ = static_cast<int64_t>(header.width);
  }
  size_ = (static_cast<int64_t>(file_.size()) - header_) / width_;
  if (size_ == 0) fail("{}: holds no tokens", path);
}

void TokenFile::read(int64_t begin, int64_t count, int64_t* out) const {
  if (begin < 0 || count < 0 || begin > size_ - count) {
    misuse("tokens {}..{} are outside 0..{}", begin, begin + count, size_);
  }
  const auto* bytes = reinterpret_cast<const unsigned char*>(file_.bytes().data()) + header_ + begin * width_;
  for (int64_t i = 0; i < count; ++i) {
    int64_t id = 0;
    for (int64_t b = width_ - 1; b >= 0; --b) id = id << 8 | bytes[i * width_ + b];
    if (id >= vocabulary_) fail("{}: is damaged: token {} of a vocabulary of {}; delete it", path_, id, vocabulary_);
    out[i] = id;
  }
}

}  // namespace seqloom
