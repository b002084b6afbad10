// The tokens of a text file: mapped, cached, and remade when text or tokenizer change.
#include "io/token_file.h"

#include <gtest/gtest.h>

#include "io/expect_error.h"
#include "io/temporary_folder.h"

namespace seqloom {
namespace {

std::shared_ptr<Tokenizer> bpe(const std::string& kind = "plain") {
  return make_tokenizer(SEQLOOM_SOURCE_DIR "/tests/io/data/" + kind + ".tokenizer.json");
}

std::vector<int64_t> all_of(const TokenFile& file) {
  std::vector<int64_t> ids(static_cast<size_t>(file.size()));
  file.read(0, file.size(), ids.data());
  return ids;
}

std::vector<int64_t> encoded(const Tokenizer& tokenizer, const std::string& text) {
  const auto ids = tokenizer.encode(text);
  return {ids.begin(), ids.end()};
}

TEST(TokenFile, BytesAreTheFileItself) {
  const TemporaryFolder folder;
  const TokenFile file(folder.make("a", "a\xff\n"), *make_tokenizer("bytes"), folder.file("cache"));
  EXPECT_EQ(all_of(file), (std::vector<int64_t>{97, 255, 10}));
  EXPECT_EQ(folder.files(), 1U);
  int64_t one = 0;
  file.read(1, 1, &one);
  EXPECT_EQ(one, 255);
  EXPECT_MISUSE(file.read(2, 2, &one), "tokens 2..4 are outside 0..3");
  EXPECT_MISUSE(file.read(-1, 1, &one), "outside");
  EXPECT_MISUSE(file.read(0, -1, &one), "outside");
}

TEST(TokenFile, PiecesGiveWhatTheWholeTextGives) {
  std::string text;
  for (int i = 0; text.size() < 2'500'000; ++i) text += "line " + std::to_string(i) + (i % 3 == 0 ? ".\n\n  " : "!\n");
  const TemporaryFolder folder;
  for (const char* kind : {"plain", "split_nfc"}) {
    const auto tokenizer = bpe(kind);
    const TokenFile file(folder.make("a", text), *tokenizer, folder.file(kind));
    EXPECT_EQ(all_of(file), encoded(*tokenizer, text)) << kind;
  }
}

TEST(TokenFile, OneEndlessLineIsCutBetweenCharacters) {
  std::string text;
  while (text.size() < 1'500'000) text += "你";
  const TemporaryFolder folder;
  const auto tokenizer = bpe();
  const TokenFile file(folder.make("a", text), *tokenizer, folder.file("cache"));
  std::string decoded;
  for (const int64_t id : all_of(file)) decoded += tokenizer->token_bytes(static_cast<int32_t>(id));
  EXPECT_EQ(decoded, text);
}

TEST(TokenFile, AStaleCacheIsMadeAnew) {
  const TemporaryFolder folder;
  const std::string cache = folder.file("cache"), path = folder.make("a", "one two");
  const auto old_time = std::filesystem::last_write_time(path);
  const auto plain = bpe("plain"), prefixed = bpe("prefixed");
  EXPECT_EQ(all_of(TokenFile(path, *plain, cache)), encoded(*plain, "one two"));
  const auto made = std::filesystem::last_write_time(cache);
  EXPECT_EQ(all_of(TokenFile(path, *plain, cache)), encoded(*plain, "one two"));
  EXPECT_EQ(std::filesystem::last_write_time(cache), made);
  EXPECT_EQ(all_of(TokenFile(path, *prefixed, cache)), encoded(*prefixed, "one two"));
  folder.make("a", "two one");  // the same size
  std::filesystem::last_write_time(path, old_time + std::chrono::seconds(1));
  EXPECT_EQ(all_of(TokenFile(path, *prefixed, cache)), encoded(*prefixed, "two one"));
  folder.make("cache", "damaged");
  EXPECT_EQ(all_of(TokenFile(path, *prefixed, cache)), encoded(*prefixed, "two one"));
}

TEST(TokenFile, ADamagedTokenIsAnError) {
  const TemporaryFolder folder;
  const std::string cache = folder.file("cache"), path = folder.make("a", "one");
  TokenFile(path, *bpe(), cache);
  std::string bytes = content_of(cache);
  bytes[bytes.size() - 1] = '\x7f';
  folder.make("cache", bytes);
  EXPECT_ERROR(all_of(TokenFile(path, *bpe(), cache)), "cache: is damaged");
}

TEST(TokenFile, ErrorsNameTheFile) {
  const TemporaryFolder folder;
  EXPECT_ERROR(TokenFile(folder.make("a", ""), *bpe(), folder.file("cache")), "a: is empty");
  EXPECT_ERROR(TokenFile(folder.file("none"), *bpe(), folder.file("cache")), "none: cannot be opened");
  EXPECT_ERROR(TokenFile(folder.make("b", "x"), *bpe(), folder.file("no/cache")), "no/cache: cannot be written");
}

}  // namespace
}  // namespace seqloom
