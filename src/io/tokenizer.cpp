#include "io/tokenizer.h"

#include "base/error.h"
#include "base/random.h"
#include "io/bpe_tokenizer.h"
#include "io/json.h"
#include "io/mapped_file.h"
#include "io/utf8.h"
#include "io/wordpiece_tokenizer.h"

namespace seqloom {
namespace {

/// Every byte is a token.
class ByteTokenizer final : public Tokenizer {
 public:
  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> ids;
    ids.reserve(text.size());
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }
  std::string token_bytes(int32_t id) const override {
    if (id < 0 || id > 255) misuse("token {} is outside the byte vocabulary 0..255", id);
    return {static_cast<char>(id)};
  }
  int64_t vocabulary() const override { return 256; }
  std::string kind() const override { return "bytes"; }
  uint64_t fingerprint() const override { return 0; }
};

uint64_t hashed(std::string_view text) {
  uint64_t hash = text.size();
  for (const char c : text) hash = mixed(hash, static_cast<unsigned char>(c));
  return hash;
}

constexpr const char* kReplacement = "\xef\xbf\xbd";

}  // namespace

std::vector<int32_t> Tokenizer::encode_framed(std::string_view text) const {
  const TokenFrame around = frame();
  std::vector<int32_t> ids = around.before;
  const auto own = encode(text);
  ids.insert(ids.end(), own.begin(), own.end());
  ids.insert(ids.end(), around.after.begin(), around.after.end());
  return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids) const {
  std::string text;
  for (const int32_t id : ids) text += token_bytes(id);
  return text;
}

std::shared_ptr<Tokenizer> make_tokenizer(const std::string& spec) {
  if (spec == "bytes") return std::make_shared<ByteTokenizer>();
  return parse_tokenizer(read_file(spec), spec);
}

std::shared_ptr<Tokenizer> parse_tokenizer(std::string_view json, const std::string& name) {
  const Config root = parse_json(json, name);
  if (text_at(member(root, "model"), "type") == "WordPiece") {
    return std::make_shared<WordPieceTokenizer>(root, name, hashed(json));
  }
  return std::make_shared<BpeTokenizer>(root, name, hashed(json));
}

std::string Utf8Stream::push(std::string_view bytes) {
  held_ += bytes;
  std::string whole;
  size_t at = 0;
  while (at < held_.size()) {
    const Utf8Step step = utf8_step(std::string_view(held_).substr(at));
    if (step.kind == Utf8Step::Kind::kCut) break;  // may still be completed
    whole += step.kind == Utf8Step::Kind::kWhole ? held_.substr(at, step.bytes) : kReplacement;
    at += step.bytes;
  }
  held_.erase(0, at);
  return whole;
}

std::string Utf8Stream::finish() {
  const bool cut = !held_.empty();
  held_.clear();
  return cut ? kReplacement : "";
}

}  // namespace seqloom
