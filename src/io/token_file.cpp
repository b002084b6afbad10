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

/// What a cache begins with. It fits exactly one text and one tokenizer.
struct CacheHeader {
  char magic[8] = {'s', 'e', 'q', 'l', 't', 'o', 'k', '1'};
  uint64_t key = 0;
  int64_t width = 0, tokens = 0;
};

uint64_t cache_key(const std::string& path, const MappedFile& text, const Tokenizer& tokenizer) {
  uint64_t key =
      mixed(text.size(), static_cast<uint64_t>(std::filesystem::last_write_time(path).time_since_epoch().count()));
  for (int32_t id = 0; id < tokenizer.vocabulary(); ++id) {
    for (const char c : tokenizer.token_bytes(id)) key = mixed(key, static_cast<unsigned char>(c));
    key = mixed(key, 256);
  }
  return key;
}

bool is_current(const std::string& cache_path, uint64_t key) {
  if (!std::filesystem::exists(cache_path)) return false;
  const MappedFile cache(cache_path);
  CacheHeader header;
  if (cache.size() < sizeof header) return false;
  std::memcpy(&header, cache.bytes().data(), sizeof header);
  return std::memcmp(header.magic, CacheHeader().magic, sizeof header.magic) == 0 && header.key == key &&
         (header.width == 2 || header.width == 4) && header.tokens >= 0 &&
         cache.size() == sizeof header + static_cast<size_t>(header.width) * static_cast<size_t>(header.tokens);
}

/// Where a piece of at most kPiece bytes ends: behind a line's end, so that no word is cut.
size_t piece_length(std::string_view rest) {
  if (rest.size() <= kPiece) return rest.size();
  const size_t line = rest.rfind('\n', kPiece - 1);
  if (line != std::string_view::npos) return line + 1;
  size_t end = kPiece;  // one endless line: at least no character is cut
  while (end > 1 && (static_cast<unsigned char>(rest[end]) & 0xc0) == 0x80) --end;
  return end;
}

void write_cache(const std::string& cache_path, std::string_view text, const Tokenizer& tokenizer, uint64_t key) {
  CacheHeader header;
  header.key = key;
  header.width = tokenizer.vocabulary() <= 0x10000 ? 2 : 4;
  const auto encode_pieces = [&](const auto& take) {
    for (std::string_view rest = text; !rest.empty();) {
      const size_t length = piece_length(rest);
      take(tokenizer.encode(rest.substr(0, length)));
      rest.remove_prefix(length);
    }
  };
  // The count is known only afterwards, and the header comes first: tokens go to a file of their own, then together.
  AtomicFile file(cache_path);
  const std::string body_path = cache_path + ".body";
  {
    AtomicFile body(body_path);
    std::string packed;
    encode_pieces([&](const std::vector<int32_t>& ids) {
      packed.clear();
      for (const int32_t id : ids) {
        for (int64_t b = 0; b < header.width; ++b) packed += static_cast<char>(id >> (8 * b) & 0xff);
      }
      header.tokens += static_cast<int64_t>(ids.size());
      body.write(packed);
    });
    body.commit();
  }
  file.write(&header, sizeof header);
  const MappedFile body(body_path);
  file.write(body.bytes().data(), body.size());
  file.commit();
  std::filesystem::remove(body_path);
}

}  // namespace

TokenFile::TokenFile(const std::string& path, const Tokenizer& tokenizer, const std::string& cache_path)
    : file_(std::make_unique<MappedFile>(path)) {
  if (file_->size() == 0) fail("{}: is empty; give a text file with something in it", path);
  if (tokenizer.kind() == "bytes") {
    size_ = static_cast<int64_t>(file_->size());
    return;
  }
  const uint64_t key = cache_key(path, *file_, tokenizer);
  if (!is_current(cache_path, key)) {
    write_cache(cache_path, {reinterpret_cast<const char*>(file_->bytes().data()), file_->size()}, tokenizer, key);
  }
  file_ = std::make_unique<MappedFile>(cache_path);
  CacheHeader header;
  std::memcpy(&header, file_->bytes().data(), sizeof header);
  header_ = sizeof header;
  width_ = header.width;
  size_ = header.tokens;
  if (size_ == 0) fail("{}: holds no tokens", path);
}

void TokenFile::read(int64_t begin, int64_t count, int64_t* out) const {
  if (begin < 0 || count < 0 || begin > size_ - count)
    misuse("tokens {}..{} are outside 0..{}", begin, begin + count, size_);
  const auto* bytes = reinterpret_cast<const unsigned char*>(file_->bytes().data()) + header_ + begin * width_;
  for (int64_t i = 0; i < count; ++i) {
    int64_t id = 0;
    for (int64_t b = width_ - 1; b >= 0; --b) id = id << 8 | bytes[i * width_ + b];
    out[i] = id;
  }
}

}  // namespace seqloom
