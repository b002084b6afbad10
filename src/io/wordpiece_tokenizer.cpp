#include "io/wordpiece_tokenizer.h"

#include <algorithm>

#include "base/error.h"
#include "io/bert_characters.h"
#include "io/json.h"
#include "io/nfc.h"
#include "io/utf8.h"

namespace seqloom {
namespace {

/// The characters of UTF-8 text; bytes that are not UTF-8 are left out, as U+FFFD would be.
std::u32string characters(std::string_view text) {
  std::u32string result;
  while (!text.empty()) {
    const Utf8Step step = utf8_step(text);
    if (step.kind == Utf8Step::Kind::kWhole) result += utf8_character(text.substr(0, step.bytes));
    text.remove_prefix(step.bytes);
  }
  return result;
}

std::string utf8(std::u32string_view characters) {
  std::string text;
  for (const char32_t c : characters) append_utf8(text, c);
  return text;
}

}  // namespace

WordPieceTokenizer::WordPieceTokenizer(const Config& root, const std::string& name, uint64_t fingerprint)
    : name_(name), fingerprint_(fingerprint) {
  read_normalizer(root);
  read_vocabulary(member(root, "model"));
  read_added_tokens(root);
  frame_ = read_frame(root, name, vocabulary());
}

void WordPieceTokenizer::read_normalizer(const Config& root) {
  const Config &normalizer = member(root, "normalizer"), &pre = member(root, "pre_tokenizer");
  if (text_at(normalizer, "type") != "BertNormalizer" || text_at(pre, "type") != "BertPreTokenizer") {
    fail("{}: WordPiece is read with a BertNormalizer and a BertPreTokenizer only, not '{}' and '{}'", name_,
         printable(text_at(normalizer, "type")), printable(text_at(pre, "type")));
  }
  if (!flag_at(normalizer, "clean_text", true)) fail("{}: normalizer.clean_text = false is not supported", name_);
  ideographs_ = flag_at(normalizer, "handle_chinese_chars", true);
  lowercase_ = flag_at(normalizer, "lowercase", true);
  strip_ = flag_at(normalizer, "strip_accents", lowercase_);  // null: as lowercase
}

void WordPieceTokenizer::set_token(int32_t id, const std::string& token) {
  const auto place = static_cast<size_t>(id);
  if (place >= tokens_.size()) tokens_.resize(place + 1);
  if (!tokens_[place].empty() && tokens_[place] != token) {
    fail("{}: id {} belongs to '{}' and to '{}'", name_, id, printable(tokens_[place]), printable(token));
  }
  tokens_[place] = token;
}

void WordPieceTokenizer::read_vocabulary(const Config& model) {
  const Config& vocabulary = member(model, "vocab");
  if (!vocabulary.is_object() || vocabulary.empty()) fail("{}: model.vocab is not a table of tokens", name_);
  prefix_ = text_at(model, "continuing_subword_prefix", "##");
  for (const auto& [token, value] : vocabulary.items()) {
    if (token.empty()) continue;
    set_token(token_id(value, token, name_), token);
    ids_.emplace(token, value.get<int32_t>());
    longest_token_ = std::max(longest_token_, token.size());
  }
  const std::string unknown = text_at(model, "unk_token", "[UNK]");
  const auto found = ids_.find(unknown);
  if (found == ids_.end()) fail("{}: model.unk_token '{}' is not in the vocabulary", name_, printable(unknown));
  unknown_ = found->second;
  const Config& longest = member(model, "max_input_chars_per_word");
  if (longest.is_null()) return;
  if (!longest.is_number_unsigned() || longest > 1000) {
    fail("{}: model.max_input_chars_per_word is {}; expected 0..1000", name_, printable(longest.dump()));
  }
  longest_word_ = longest.get<size_t>();
}

void WordPieceTokenizer::read_added_tokens(const Config& root) {
  std::vector<std::pair<std::string, int32_t>> raw, normal;
  for (const auto& token : read_tokens_added(root, name_)) {
    set_token(token.id, token.content);
    const std::string content = token.normalized ? utf8(normalized(token.content)) : token.content;
    if (!content.empty()) (token.normalized ? normal : raw).emplace_back(content, token.id);
  }
  raw_added_ = AddedTokens(std::move(raw));
  normal_added_ = AddedTokens(std::move(normal));
}

std::string WordPieceTokenizer::token_bytes(int32_t id) const {
  if (id < 0 || static_cast<size_t>(id) >= tokens_.size()) {
    misuse("token {} is outside the vocabulary 0..{}", id, vocabulary() - 1);
  }
  const std::string& token = tokens_[static_cast<size_t>(id)];
  return token.starts_with(prefix_) && token != prefix_ ? token.substr(prefix_.size()) : " " + token;
}

std::u32string WordPieceTokenizer::normalized(std::string_view text) const {
  std::u32string clean;
  for (const char32_t c : characters(text)) {
    const BertCharacter kind = bert_character(c);
    if (kind == BertCharacter::kControl) continue;
    const bool alone = kind == BertCharacter::kIdeograph && ideographs_;
    if (alone) clean += U' ';
    clean += kind == BertCharacter::kSpace ? U' ' : c;
    if (alone) clean += U' ';
  }
  if (strip_) {
    clean = to_nfd(clean);
    std::erase_if(clean, [](char32_t c) { return bert_character(c) == BertCharacter::kMark; });
  }
  if (!lowercase_) return clean;
  std::u32string small;
  for (const char32_t c : clean) {
    small += c == U'\u0130' ? U'i' : lowered(c);
    if (c == U'\u0130') small += U'\u0307';
  }
  return small;
}

std::vector<int32_t> WordPieceTokenizer::encode(std::string_view text) const {
  std::vector<int32_t> ids;
  raw_added_.cut(text, ids, [&](std::string_view rest) {
    normal_added_.cut(utf8(normalized(rest)), ids, [&](std::string_view plain) { encode_normal(plain, ids); });
  });
  return ids;
}

void WordPieceTokenizer::encode_normal(std::string_view text, std::vector<int32_t>& ids) const {
  const std::u32string letters = characters(text);
  const std::u32string_view all = letters;
  size_t begin = 0;
  for (size_t at = 0; at <= all.size(); ++at) {
    const BertCharacter kind = at < all.size() ? bert_character(all[at]) : BertCharacter::kSpace;
    if (kind != BertCharacter::kSpace && kind != BertCharacter::kPunctuation) continue;
    if (at > begin) encode_word(all.substr(begin, at - begin), ids);
    if (kind == BertCharacter::kPunctuation) encode_word(all.substr(at, 1), ids);
    begin = at + 1;
  }
}

void WordPieceTokenizer::encode_word(std::u32string_view word, std::vector<int32_t>& ids) const {
  if (word.size() > longest_word_) return ids.push_back(unknown_);
  const size_t before = ids.size();
  std::string rest = utf8(word);
  size_t shortest = 1;  // a prefix alone is no continuation
  while (rest.size() >= shortest) {
    size_t length = std::min(rest.size(), longest_token_);
    auto found = ids_.end();
    while (length >= shortest) {
      found = ids_.find(std::string_view(rest).substr(0, length));
      if (found != ids_.end()) break;
      --length;
    }
    if (found == ids_.end()) {
      ids.resize(before);
      return ids.push_back(unknown_);
    }
    ids.push_back(found->second);
    rest.replace(0, length, prefix_);
    shortest = prefix_.size() + 1;
  }
}

}  // namespace seqloom
