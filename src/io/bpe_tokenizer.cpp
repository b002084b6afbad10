#include "io/bpe_tokenizer.h"

#include <algorithm>

#include "io/byte_level.h"
#include "io/json.h"
#include "io/nfc.h"

namespace seqloom {
namespace {

constexpr size_t kMaxSteps = 16;

/// GPT-2's pattern, which a ByteLevel pre-tokenizer with use_regex stands for.
constexpr const char* kGpt2Pattern = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

/// The two tokens of a merge, written "a b" or ["a", "b"].
std::optional<std::pair<std::string, std::string>> merge_pair(const Config& merge) {
  if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
    return std::pair(merge[0].get<std::string>(), merge[1].get<std::string>());
  }
  if (!merge.is_string()) return std::nullopt;
  const auto line = merge.get<std::string>();
  const size_t space = line.find(' ');
  if (space == std::string::npos) return std::nullopt;
  return std::pair(line.substr(0, space), line.substr(space + 1));
}

}  // namespace

BpeTokenizer::BpeTokenizer(const Config& root, const std::string& name, uint64_t fingerprint)
    : name_(name), fingerprint_(fingerprint) {
  check_kind(root);
  const Config& model = member(root, "model");
  nfc_ = !member(root, "normalizer").is_null();
  ignore_merges_ = flag_at(model, "ignore_merges", false);
  fuse_unknown_ = flag_at(model, "fuse_unk", false);
  read_vocabulary(model);
  read_bytes(model);
  read_merges(model);
  read_added_tokens(root);
  read_steps(root);
  frame_ = read_frame(root, name, vocabulary());
}

void BpeTokenizer::check_kind(const Config& root) const {
  const Config& model = member(root, "model");
  if (!model.is_object()) fail("{}: not a tokenizer.json: it has no table 'model'", name_);
  const std::string type = text_at(model, "type");
  if (type != "BPE" && !(type.empty() && model.contains("merges"))) {
    fail("{}: model.type is '{}'; expected BPE", name_, printable(type));
  }
  if (!text_at(model, "continuing_subword_prefix").empty() || !text_at(model, "end_of_word_suffix").empty()) {
    fail("{}: subword prefixes and suffixes are not byte-level BPE", name_);
  }
  const Config& dropout = member(model, "dropout");
  if (!dropout.is_null() && dropout != 0) fail("{}: model.dropout makes encoding random; expected null", name_);
  const Config& normalizer = member(root, "normalizer");
  if (!normalizer.is_null() && text_at(normalizer, "type") != "NFC") {
    fail("{}: normalizer '{}' is not supported; expected null or NFC", name_, printable(text_at(normalizer, "type")));
  }
}

void BpeTokenizer::set_token(int32_t id, const std::string& bytes) {
  const auto place = static_cast<size_t>(id);
  if (place >= bytes_.size()) bytes_.resize(place + 1);
  if (!bytes_[place].empty() && bytes_[place] != bytes) {
    fail("{}: id {} belongs to '{}' and to '{}'", name_, id, printable(bytes_[place]), printable(bytes));
  }
  bytes_[place] = bytes;
}

void BpeTokenizer::read_vocabulary(const Config& model) {
  const Config& vocabulary = member(model, "vocab");
  if (!vocabulary.is_object() || vocabulary.empty()) fail("{}: model.vocab is not a table of tokens", name_);
  for (const auto& [written, value] : vocabulary.items()) {
    if (written.empty()) continue;  // it stands for nothing and no text leads to it
    const int32_t id = token_id(value, written, name_);
    // an entry that is not written in byte characters is never made by merging
    const auto bytes = bytes_of_characters(written);
    set_token(id, bytes.value_or(written));
    if (bytes) ids_[*bytes] = id;
  }
}

void BpeTokenizer::read_bytes(const Config& model) {
  const Config& vocabulary = member(model, "vocab");
  const bool fallback = flag_at(model, "byte_fallback", false);
  for (size_t b = 0; b < byte_symbols_.size(); ++b) {
    const std::string character = byte_character(static_cast<unsigned char>(b));
    std::vector<std::string> tokens = {character};
    if (fallback && !vocabulary.contains(character)) {
      tokens.clear();
      for (const char c : character) tokens.push_back(fmt::format("<0x{:02X}>", static_cast<unsigned char>(c)));
    }
    const auto known = [&](const std::string& token) { return vocabulary.contains(token); };
    if (!std::all_of(tokens.begin(), tokens.end(), known)) continue;
    for (const auto& token : tokens) byte_symbols_[b].push_back(vocabulary[token].get<int32_t>());
  }
  const std::string unknown = text_at(model, "unk_token");
  if (unknown.empty()) return;
  if (!vocabulary.contains(unknown)) {
    fail("{}: model.unk_token '{}' is not in the vocabulary", name_, printable(unknown));
  }
  unknown_ = vocabulary[unknown].get<int32_t>();
}

void BpeTokenizer::read_merges(const Config& model) {
  const Config& merges = member(model, "merges");
  if (!merges.is_array()) fail("{}: model.merges is not a list", name_);
  const Config& vocabulary = member(model, "vocab");
  const auto known = [&](const std::string& token, size_t rank) {
    const auto found = vocabulary.find(token);
    if (token.empty() || found == vocabulary.end()) {
      fail("{}: merge {} names '{}', which is not in the vocabulary", name_, rank, printable(token));
    }
    return found->get<int32_t>();
  };
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const auto pair = merge_pair(merges[rank]);
    if (!pair) fail("{}: merge {} is {}; expected two tokens", name_, rank, printable(merges[rank].dump()));
    const auto& [left, right] = *pair;
    const int32_t a = known(left, rank), b = known(right, rank);
    merges_.add(a, b, static_cast<int32_t>(rank), known(left + right, rank));
  }
}

void BpeTokenizer::read_added_tokens(const Config& root) {
  std::vector<std::pair<std::string, int32_t>> raw, normal;
  for (const auto& token : read_tokens_added(root, name_)) {
    if (member(member(member(root, "model"), "vocab"), token.content).is_null()) set_token(token.id, token.content);
    bytes_[static_cast<size_t>(token.id)] = token.content;
    if (token.normalized) {
      normal.emplace_back(nfc_ ? to_nfc(token.content) : token.content, token.id);
    } else {
      raw.emplace_back(token.content, token.id);
    }
  }
  raw_added_ = AddedTokens(std::move(raw));
  normal_added_ = AddedTokens(std::move(normal));
}

void BpeTokenizer::read_steps(const Config& root) {
  const Config& pre = member(root, "pre_tokenizer");
  const bool sequence = text_at(pre, "type") == "Sequence";
  const Config& steps = sequence ? member(pre, "pretokenizers") : pre;
  if (sequence && (!steps.is_array() || steps.size() > kMaxSteps)) {
    fail("{}: the pre-tokenizer's sequence is not a list of at most {}", name_, kMaxSteps);
  }
  bool byte_level = false;
  for (const auto& step : sequence || pre.is_null() ? steps : Config::array({pre})) {
    steps_.push_back(read_step(step));
    byte_level = byte_level || text_at(step, "type") == "ByteLevel";
  }
  if (!byte_level) fail("{}: no ByteLevel pre-tokenizer: this is not byte-level BPE", name_);
}

BpeTokenizer::Step BpeTokenizer::read_step(const Config& step) const {
  const std::string type = text_at(step, "type");
  if (type == "ByteLevel") {
    const bool split = flag_at(step, "use_regex", true);
    return {flag_at(step, "add_prefix_space", true),
            split ? std::optional<RegexSplitter>(std::in_place, kGpt2Pattern, name_) : std::nullopt};
  }
  if (type == "Digits") {
    return {false, RegexSplitter(flag_at(step, "individual_digits", false) ? "\\p{N}" : "\\p{N}+", name_)};
  }
  const Config& pattern = member(member(step, "pattern"), "Regex");
  if (type == "Split" && text_at(step, "behavior") == "Isolated" && !flag_at(step, "invert", false) &&
      pattern.is_string()) {
    return {false, RegexSplitter(pattern.get<std::string>(), name_)};
  }
  fail("{}: pre-tokenizer '{}' is not supported; expected ByteLevel, Digits, or Split by an isolated Regex", name_,
       printable(type));
}

std::string BpeTokenizer::token_bytes(int32_t id) const {
  if (id < 0 || static_cast<size_t>(id) >= bytes_.size()) {
    misuse("token {} is outside the vocabulary 0..{}", id, vocabulary() - 1);
  }
  return bytes_[static_cast<size_t>(id)];
}

std::vector<int32_t> BpeTokenizer::encode(std::string_view text) const {
  std::vector<int32_t> ids;
  raw_added_.cut(text, ids, [&](std::string_view rest) {
    const std::string normal = nfc_ ? to_nfc(rest) : std::string();
    normal_added_.cut(nfc_ ? normal : rest, ids, [&](std::string_view plain) { encode_plain(plain, 0, ids); });
  });
  return ids;
}

void BpeTokenizer::encode_plain(std::string_view text, size_t step, std::vector<int32_t>& ids) const {
  if (step == steps_.size()) return encode_word(text, ids);
  std::string prefixed;
  if (steps_[step].prefix_space && text.front() != ' ') {
    prefixed = " ";
    text = prefixed.append(text);
  }
  if (!steps_[step].splitter) return encode_plain(text, step + 1, ids);
  for (const auto piece : steps_[step].splitter->split(text)) encode_plain(piece, step + 1, ids);
}

void BpeTokenizer::encode_word(std::string_view word, std::vector<int32_t>& ids) const {
  if (ignore_merges_) {
    const auto whole = ids_.find(std::string(word));
    if (whole != ids_.end()) return ids.push_back(whole->second);
  }
  std::vector<int32_t> symbols;
  symbols.reserve(word.size());
  bool after_unknown = false;
  for (const char c : word) {
    const auto& known = byte_symbols_[static_cast<unsigned char>(c)];
    symbols.insert(symbols.end(), known.begin(), known.end());
    // without an unknown token a byte that has none is dropped
    if (known.empty() && unknown_ && !(fuse_unknown_ && after_unknown)) symbols.push_back(*unknown_);
    after_unknown = known.empty();
  }
  merges_.apply(symbols);
  ids.insert(ids.end(), symbols.begin(), symbols.end());
}

}  // namespace seqloom
