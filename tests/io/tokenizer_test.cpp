// Tokenizers: the same ids as Hugging Face's library (tests/io/make_tokenizer_data.py), and hostile tokenizer.json.
#include "io/tokenizer.h"

#include <gtest/gtest.h>

#include "io/expect_error.h"
#include "io/json.h"
#include "io/mapped_file.h"
#include "io/temporary_folder.h"

namespace seqloom {
namespace {

const std::string kData = SEQLOOM_SOURCE_DIR "/tests/io/data/";

class SameIds : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Kinds, SameIds,
                         testing::Values("plain", "prefixed", "split_nfc", "wordpiece", "wordpiece_cased"));

TEST_P(SameIds, AsTheReferenceLibrary) {
  const auto tokenizer = make_tokenizer(kData + GetParam() + ".tokenizer.json");
  const std::string expected = kData + GetParam() + ".expected.json";
  for (const auto& entry : parse_json(read_file(expected), expected)) {
    const auto ids = tokenizer->encode(entry["text"].get<std::string>());
    EXPECT_EQ(ids, entry["ids"].get<std::vector<int32_t>>()) << entry["text"];
    if (!entry.contains("framed")) continue;
    EXPECT_EQ(tokenizer->encode_framed(entry["text"].get<std::string>()), entry["framed"].get<std::vector<int32_t>>());
  }
}

TEST_P(SameIds, DecodingGivesTheTextBack) {
  if (std::string(GetParam()).starts_with("wordpiece")) GTEST_SKIP() << "WordPiece keeps no spaces";
  const auto tokenizer = make_tokenizer(kData + GetParam() + ".tokenizer.json");
  for (const char* text : {" It's 12\r\n\t  x", " \xff\xe4\xbd bytes \xc0\x80", " 你好 🙂<|end|> b"}) {
    EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
  }
}

TEST(BpeTokenizer, LongWordsTakeNLogN) {
  for (const char* name : {"plain", "split_nfc"}) {
    const auto tokenizer = make_tokenizer(kData + name + ".tokenizer.json");
    for (const char* unit : {"a", "in", " ", "\n", "!", "7", "\xcc\x81", "\xff", "it's", " \n", "<|end"}) {
      std::string text;
      while (text.size() < 1'000'000) text += unit;
      const auto ids = tokenizer->encode(text);
      if (std::string_view(unit) != "\xcc\x81") {
        EXPECT_EQ(tokenizer->decode(ids), text) << unit;
      }
    }
  }
}

TEST(BpeTokenizer, KnowsItsVocabulary) {
  const auto tokenizer = make_tokenizer(kData + "plain.tokenizer.json");
  EXPECT_EQ(tokenizer->kind(), "bpe");
  EXPECT_EQ(tokenizer->vocabulary(), 702);
  EXPECT_EQ(tokenizer->token_bytes(0), "<|end|>");
  EXPECT_MISUSE(tokenizer->token_bytes(702), "token 702 is outside the vocabulary 0..701");
  EXPECT_MISUSE(tokenizer->token_bytes(-1), "outside the vocabulary");
  EXPECT_NE(tokenizer->fingerprint(), make_tokenizer(kData + "prefixed.tokenizer.json")->fingerprint());
}

/// A small tokenizer.json with `changes` (JSON merge patch) applied.
std::shared_ptr<Tokenizer> small(const char* changes) {
  Config tree = Config::parse(R"({
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "Ġ": 3, "aba": 4}, "merges": ["a b", "ab a"]},
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true}})");
  tree.merge_patch(Config::parse(changes));
  return parse_tokenizer(tree.dump(), "t.json");
}

using Ids = std::vector<int32_t>;

TEST(BpeTokenizer, PutsItsTemplateRoundATextWhereAsked) {
  const auto framed = small(R"({"post_processor": {"type": "Sequence", "processors": [{"type": "ByteLevel"},
      {"type": "TemplateProcessing", "special_tokens": {"<s>": {"ids": [3, 1]}},
       "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "<s>"}}]}]}})");
  EXPECT_EQ(framed->encode("ab"), (Ids{2}));
  EXPECT_EQ(framed->encode_framed("ab"), (Ids{3, 1, 2, 3, 1}));
  EXPECT_EQ(small("{}")->encode_framed("ab"), (Ids{2}));
  EXPECT_ERROR(small(R"({"post_processor": {"type": "Other"}})"), "t.json: post_processor 'Other' is not supported");
  EXPECT_ERROR(small(R"({"post_processor": {"type": "BertProcessing", "cls": ["a", 0], "sep": ["b", 99]}})"),
               "id 99 is beyond the vocabulary of 5");
  EXPECT_ERROR(small(R"({"post_processor": {"type": "TemplateProcessing", "single": []}})"), "leaves the text out");
}

/// A small WordPiece tokenizer.json with `changes`.
std::shared_ptr<Tokenizer> small_wordpiece(const char* changes) {
  Config tree = Config::parse(R"({
    "model": {"type": "WordPiece", "vocab": {"[UNK]": 0, "a": 1, "##": 2, "##b": 3, "ab": 4, "##ab": 5, "#": 6}},
    "normalizer": {"type": "BertNormalizer"}, "pre_tokenizer": {"type": "BertPreTokenizer"}})");
  tree.merge_patch(Config::parse(changes));
  return parse_tokenizer(tree.dump(), "w.json");
}

TEST(WordPieceTokenizer, TakesTheLongestPieces) {
  const auto tokenizer = small_wordpiece("{}");
  EXPECT_EQ(tokenizer->encode("abab aab Ab"), (Ids{4, 5, 1, 5, 4}));
  EXPECT_EQ(tokenizer->encode("aba a#b ##"), (Ids{0, 1, 6, 0, 6, 6})) << "a prefix alone continues nothing";
  EXPECT_EQ(tokenizer->encode("a\xff\xfe b"), (Ids{1, 0})) << "bytes that are not UTF-8 are left out";
  EXPECT_EQ(tokenizer->decode(Ids{4, 5, 1}), " abab a");
  EXPECT_EQ(small_wordpiece(R"({"model": {"max_input_chars_per_word": 2}})")->encode("ab aab"), (Ids{4, 0}));
  EXPECT_MISUSE(tokenizer->token_bytes(7), "outside the vocabulary 0..6");
}

TEST(WordPieceTokenizer, RefusesWhatItCannotRead) {
  EXPECT_ERROR(small_wordpiece(R"({"normalizer": {"type": "NFC"}})"),
               "w.json: WordPiece is read with a BertNormalizer");
  EXPECT_ERROR(small_wordpiece(R"({"model": {"unk_token": "?"}})"), "unk_token '?' is not in the vocabulary");
  EXPECT_ERROR(small_wordpiece(R"({"model": {"vocab": {"x": 1}}})"), "id 1 belongs to");
  EXPECT_ERROR(small_wordpiece(R"({"model": {"vocab": {"x": -1}}})"), "the id of 'x' is -1");
  EXPECT_ERROR(small_wordpiece(R"({"model": {"vocab": null}})"), "model.vocab is not a table");
}

TEST(BpeTokenizer, MergesInOrderOfRank) {
  EXPECT_EQ(small("{}")->encode("ababa b"), (Ids{2, 4, 3, 1}));
  EXPECT_EQ(small(R"({"model": {"merges": [["a", "b"], ["ab", "a"]]}})")->encode("aba"), (Ids{4}));
  EXPECT_EQ(small(R"({"model": {"merges": [], "ignore_merges": true}})")->encode("aba ab"), (Ids{4, 3, 0, 1}));
}

TEST(BpeTokenizer, BytesWithoutAToken) {
  EXPECT_EQ(small("{}")->encode("axxb"), (Ids{2}));
  EXPECT_EQ(small(R"({"model": {"unk_token": "b"}})")->encode("axx"), (Ids{2, 1}));
  EXPECT_EQ(small(R"({"model": {"vocab": {"?": 9}, "unk_token": "?"}})")->encode("axxb"), (Ids{0, 9, 9, 1}));
  EXPECT_EQ(small(R"({"model": {"vocab": {"?": 9}, "unk_token": "?", "fuse_unk": true}})")->encode("axxb"),
            (Ids{0, 9, 1}));
  EXPECT_EQ(small(R"({"model": {"vocab": {"<0x78>": 9}, "byte_fallback": true}})")->encode("axb"), (Ids{0, 9, 1}));
}

TEST(BpeTokenizer, SplitsByEachPreTokenizer) {
  const char* steps = R"({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
    {"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Isolated", "invert": false},
    {"type": "ByteLevel", "add_prefix_space": true, "use_regex": false}]}})";
  EXPECT_EQ(small(steps)->encode("ab"), (Ids{3, 0, 3, 1}));
}

TEST(BpeTokenizer, RefusesABrokenFile) {
  EXPECT_ERROR(make_tokenizer("missing.json"), "missing.json: cannot be opened");
  EXPECT_ERROR(parse_tokenizer("{", "t.json"), "t.json: not valid JSON");
  EXPECT_ERROR(parse_tokenizer("[]", "t.json"), "t.json: not a tokenizer.json");
  EXPECT_ERROR(parse_tokenizer("{\"model\": 1}", "t.json"), "it has no table 'model'");
  EXPECT_ERROR(parse_tokenizer(std::string(1'000'000, '['), "t.json"), "nested deeper");
}

TEST(BpeTokenizer, RefusesWhatItCannotBe) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({"model": {"type": "Unigram"}})", "model.type is 'Unigram'; expected BPE"},
      {R"({"model": {"dropout": 0.1}})", "model.dropout"},
      {R"({"model": {"end_of_word_suffix": "</w>"}})", "suffixes"},
      {R"({"model": {"unk_token": "?"}})", "model.unk_token '?' is not in the vocabulary"},
      {R"({"model": {"vocab": null}})", "model.vocab is not a table"},
      {R"({"model": {"vocab": ["a"]}})", "model.vocab is not a table"},
      {R"({"model": {"vocab": {"c": -1}}})", "the id of 'c' is -1"},
      {R"({"model": {"vocab": {"c": 1.5}}})", "the id of 'c' is 1.5"},
      {R"({"model": {"vocab": {"c": "1"}}})", "the id of 'c' is \"1\""},
      {R"({"model": {"vocab": {"c": 2147483648}}})", "the id of 'c' is 2147483648; expected 0..4194303"},
      {R"({"model": {"vocab": {"c": 2}}})", "id 2 belongs to 'ab' and to 'c'"},
      {R"({"model": {"merges": null}})", "model.merges is not a list"},
      {R"({"model": {"merges": ["ab"]}})", "merge 0 is \"ab\"; expected two tokens"},
      {R"({"model": {"merges": [["a", "b", "a"]]}})", "expected two tokens"},
      {R"({"model": {"merges": [7]}})", "merge 0 is 7"},
      {R"({"model": {"merges": ["a c"]}})", "merge 0 names 'c', which is not in the vocabulary"},
      {R"({"model": {"merges": ["b a"]}})", "merge 0 names 'ba'"},
      {R"({"model": {"merges": [" b"]}})", "merge 0 names ''"},
      {R"({"normalizer": {"type": "Lowercase"}})", "normalizer 'Lowercase' is not supported; expected null or NFC"},
      {R"({"pre_tokenizer": null})", "no ByteLevel pre-tokenizer"},
      {R"({"pre_tokenizer": {"type": "Whitespace"}})", "pre-tokenizer 'Whitespace' is not supported"},
      {R"({"pre_tokenizer": {"type": "Sequence"}})", "sequence is not a list"},
      {R"({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a"}, "behavior": "Isolated"}})", "not valid at"},
      {R"({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Removed"}})", "not supported"},
      {R"({"added_tokens": 1})", "added_tokens is not a list"},
      {R"({"added_tokens": [{"id": 9}]})", "the content of an added token is ''"},
      {R"({"added_tokens": [{"id": 9, "content": "x"}, {"id": 8, "content": "x"}]})", "expected a new one"},
      {R"({"added_tokens": [{"id": 9, "content": "x"}, {"id": 9, "content": "y"}]})", "id 9 belongs to 'x' and to 'y'"},
      {R"({"added_tokens": [{"id": 0, "content": "x"}]})", "id 0 belongs to 'a' and to 'x'"},
      {R"({"added_tokens": [{"id": 9, "content": "ab"}]})", "'ab' has id 9, but 2 in the vocabulary"},
      {R"({"added_tokens": [{"content": "x"}]})", "the id of 'x' is null"},
      {R"({"added_tokens": [{"id": 9, "content": "x", "lstrip": true}]})", "asks for lstrip"},
  };
  for (const auto& [changes, part] : cases) {
    const std::string message = error_of([&, text = changes] { small(text); });
    EXPECT_NE(message.find(part), std::string::npos) << changes << "\n" << message;
    EXPECT_EQ(message.find("t.json: "), 0U) << message;
  }
}

TEST(BpeTokenizer, AHostilePatternGivesUp) {
  const char* step = R"({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
    {"type": "Split", "pattern": {"Regex": "(a|aa|a?a)+[bc]"}, "behavior": "Isolated"}, {"type": "ByteLevel"}]}})";
  EXPECT_ERROR(small(step)->encode(std::string(1000, 'a') + "!"), "t.json: the pre-tokenizer's pattern gave up");
}

TEST(ByteTokenizer, EveryByteIsAToken) {
  const auto tokenizer = make_tokenizer("bytes");
  EXPECT_EQ(tokenizer->vocabulary(), 256);
  EXPECT_EQ(tokenizer->kind(), "bytes");
  const std::string text("\0a\xff", 3);
  EXPECT_EQ(tokenizer->encode(text), (Ids{0, 97, 255}));
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
  EXPECT_MISUSE(tokenizer->token_bytes(256), "token 256 is outside the byte vocabulary 0..255");
}

std::string streamed(const std::string& bytes) {
  Utf8Stream characters;
  std::string text;
  for (const char c : bytes) text += characters.push(std::string(1, c));
  return text + characters.finish();
}

TEST(Utf8Stream, HoldsBackWhatIsNotWhole) {
  Utf8Stream characters;
  EXPECT_EQ(characters.push("a\xe4"), "a");
  EXPECT_EQ(characters.push("\xbd"), "");
  EXPECT_EQ(characters.push("\xa0!"), "你!");
  EXPECT_EQ(characters.push("\xf0\x9f"), "");
  EXPECT_EQ(characters.finish(), "\xef\xbf\xbd");
  EXPECT_EQ(characters.finish(), "");
}

TEST(Utf8Stream, ReplacesWhatIsNotUtf8) {
  const std::string bad = "\xef\xbf\xbd";
  EXPECT_EQ(streamed("né 🙂"), "né 🙂");
  EXPECT_EQ(streamed("a\xff"
                     "b"),
            "a" + bad + "b");
  EXPECT_EQ(streamed("\xc3("), bad + "(");
  EXPECT_EQ(streamed("\xe4\xbd"
                     "a"),
            bad + "a");
  EXPECT_EQ(streamed("\xed\xa0\x80"), bad + bad + bad);  // a surrogate
  EXPECT_EQ(streamed("\xc0\xaf"), bad + bad);            // overlong
  EXPECT_EQ(streamed("\xf4\x90\x80\x80"), bad + bad + bad + bad);
}

}  // namespace
}  // namespace seqloom
