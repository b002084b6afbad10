#include "io/bpe_tokenizer.h"

#include <algorithm>
#include <array>
#include <limits>
#include <queue>

#include "io/json.h"

namespace seqloom {
namespace {

constexpr int64_t kMaxVocabulary = 1 << 24;

/// GPT-2's pattern, which a ByteLevel pre-tokenizer with use_regex stands for.
constexpr const char* kGpt2Pattern = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

/// tokenizer.json writes each byte as a printable character: itself where it is one, else U+0100 and up in order.
std::array<char32_t, 256> byte_characters() {
  std::array<char32_t, 256> table{};
  char32_t next = 0x100;
  for (int b = 0; b < 256; ++b) {
    const bool printable = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || (b >= 0xae && b <= 0xff);
    table[static_cast<size_t>(b)] = printable ? static_cast<char32_t>(b) : next++;
  }
  return table;
}

/// The bytes that a token of the vocabulary is written for; nullopt when it has a character that stands for no byte.
std::optional<std::string> to_bytes(const std::string& written) {
  static const auto bytes = [] {
    std::unordered_map<char32_t, char> map;
    const auto characters = byte_characters();
    for (size_t b = 0; b < 256; ++b) map[characters[b]] = static_cast<char>(b);
    return map;
  }();
  std::string result;
  for (size_t i = 0; i < written.size();) {  // valid UTF-8: it came out of JSON; no byte's character is above U+07FF
    const auto lead = static_cast<unsigned char>(written[i]);
    char32_t character = lead;
    if (lead >= 0x80) {
      if (lead >= 0xe0) return std::nullopt;
      character = static_cast<char32_t>((lead & 0x1f) << 6 | (static_cast<unsigned char>(written[i + 1]) & 0x3f));
    }
    const auto found = bytes.find(character);
    if (found == bytes.end()) return std::nullopt;
    result += found->second;
    i += lead >= 0x80 ? 2 : 1;
  }
  return result;
}

uint64_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

const Config& member(const Config& table, const char* key) {
  static const Config nothing;
  const auto found = table.is_object() ? table.find(key) : table.end();
  return table.is_object() && found != table.end() ? *found : nothing;
}

bool flag(const Config& table, const char* key, bool otherwise) {
  const Config& value = member(table, key);
  return value.is_boolean() ? value.get<bool>() : otherwise;
}

std::string text(const Config& table, const char* key) {
  const Config& value = member(table, key);
  return value.is_string() ? value.get<std::string>() : "";
}

}  // namespace

BpeTokenizer::BpeTokenizer(std::string_view json, const std::string& name) : name_(name) {
  const Config root = parse_json(json, name);
  const Config& model = member(root, "model");
  if (!model.is_object()) fail("{}: not a tokenizer.json: it has no table 'model'", name);
  const std::string type = text(model, "type");
  if (type != "BPE" && !(type.empty() && model.contains("merges")))
    fail("{}: model.type is '{}'; expected BPE", name, type);
  if (!text(model, "continuing_subword_prefix").empty() || !text(model, "end_of_word_suffix").empty()) {
    fail("{}: subword prefixes and suffixes are not byte-level BPE", name);
  }
  const std::string normalizer = text(member(root, "normalizer"), "type");
  if (!member(root, "normalizer").is_null() && normalizer != "NFC") {
    fail("{}: normalizer '{}' is not supported; expected none or NFC", name, normalizer);
  }
  ignore_merges_ = flag(model, "ignore_merges", false);
  read_vocabulary(model);
  read_merges(model);
  read_added_tokens(root);
  read_splitters(root);
}

int32_t BpeTokenizer::id_of(const Config& value, const std::string& what) const {
  if (!value.is_number_integer() || value < 0 || value >= kMaxVocabulary) {
    fail("{}: the id of {} is {}; expected 0..{}", name_, what, value.dump(), kMaxVocabulary - 1);
  }
  return value.get<int32_t>();
}

void BpeTokenizer::read_vocabulary(const Config& model) {
  const Config& vocabulary = member(model, "vocab");
  if (!vocabulary.is_object() || vocabulary.empty()) fail("{}: model.vocab is not a table of tokens", name_);
  for (const auto& [written, value] : vocabulary.items()) {
    const auto id = static_cast<size_t>(id_of(value, "'" + written + "'"));
    if (id >= bytes_.size()) {
      bytes_.resize(id + 1);
      used_.resize(id + 1);
    }
    if (used_[id]) fail("{}: id {} belongs to two tokens", name_, id);
    used_[id] = true;
    // an entry that is not written in byte characters is a special token: it is never made by merging
    const auto bytes = to_bytes(written);
    bytes_[id] = bytes.value_or(written);
    if (bytes) ids_[*bytes] = static_cast<int32_t>(id);
  }
  byte_ids_.assign(256, -1);
  for (int b = 0; b < 256; ++b) {
    const auto found = ids_.find(std::string(1, static_cast<char>(b)));
    if (found != ids_.end()) byte_ids_[static_cast<size_t>(b)] = found->second;
  }
}

void BpeTokenizer::read_merges(const Config& model) {
  const Config& merges = member(model, "merges");
  if (!merges.is_array()) fail("{}: model.merges is not a list", name_);
  const auto known = [&](const std::string& written, size_t rank) {
    const auto bytes = to_bytes(written);
    const auto found = bytes ? ids_.find(*bytes) : ids_.end();
    if (found == ids_.end()) fail("{}: merge {} names '{}', which is not in the vocabulary", name_, rank, written);
    return found->second;
  };
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const Config& merge = merges[rank];
    std::string left, right;
    if (merge.is_string()) {
      const auto line = merge.get<std::string>();
      const size_t space = line.find(' ');
      if (space == std::string::npos) fail("{}: merge {} = '{}' is not two tokens", name_, rank, line);
      left = line.substr(0, space);
      right = line.substr(space + 1);
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      left = merge[0].get<std::string>();
      right = merge[1].get<std::string>();
    } else {
      fail("{}: merge {} is not a pair of tokens", name_, rank);
    }
    const int32_t a = known(left, rank), b = known(right, rank);
    merges_.emplace(pair_key(a, b), Merge{static_cast<int32_t>(rank), known(left + right, rank)});
  }
}

void BpeTokenizer::read_added_tokens(const Config& root) {
  const Config& added = member(root, "added_tokens");
  if (added.is_null()) return;
  if (!added.is_array()) fail("{}: added_tokens is not a list", name_);
  for (const auto& token : added) {
    const std::string content = text(token, "content");
    if (content.empty()) fail("{}: an added token has no content", name_);
    for (const char* option : {"lstrip", "rstrip", "single_word"}) {
      if (flag(token, option, false))
        fail("{}: added token '{}' asks for {}, which is not supported", name_, content, option);
    }
    const auto id = static_cast<size_t>(id_of(member(token, "id"), "'" + content + "'"));
    if (id >= bytes_.size()) {
      bytes_.resize(id + 1);
      used_.resize(id + 1);
    }
    used_[id] = true;
    bytes_[id] = content;
    added_.emplace_back(content, static_cast<int32_t>(id));
  }
  std::stable_sort(added_.begin(), added_.end(),
                   [](const auto& a, const auto& b) { return a.first.size() > b.first.size(); });
}

void BpeTokenizer::read_splitters(const Config& root) {
  const Config& pre = member(root, "pre_tokenizer");
  if (pre.is_null()) return;
  if (text(pre, "type") != "Sequence") return add_splitter(pre);
  const Config& steps = member(pre, "pretokenizers");
  if (!steps.is_array()) fail("{}: the pre-tokenizer's sequence has no list", name_);
  for (const auto& step : steps) add_splitter(step);
}

void BpeTokenizer::add_splitter(const Config& step) {
  const std::string type = text(step, "type");
  if (type == "ByteLevel") {
    add_prefix_space_ = flag(step, "add_prefix_space", true);
    if (flag(step, "use_regex", true)) splitters_.emplace_back(kGpt2Pattern, name_);
  } else if (type == "Split" && text(step, "behavior") == "Isolated" && !flag(step, "invert", false) &&
             member(member(step, "pattern"), "Regex").is_string()) {
    splitters_.emplace_back(text(member(step, "pattern"), "Regex"), name_);
  } else {
    fail("{}: pre-tokenizer '{}' is not supported; expected ByteLevel, or Split by an isolated Regex", name_, type);
  }
}

std::string BpeTokenizer::token_bytes(int32_t id) const {
  if (id < 0 || static_cast<size_t>(id) >= bytes_.size())
    misuse("token {} is outside the vocabulary of {}", id, bytes_.size());
  return bytes_[static_cast<size_t>(id)];
}

std::vector<int32_t> BpeTokenizer::encode(std::string_view text) const {
  std::vector<int32_t> ids;
  std::vector<size_t> next(added_.size(), 0);  // where each added token occurs next, looked up only when passed
  for (size_t i = 0; i < added_.size(); ++i) next[i] = text.find(added_[i].first);
  size_t at = 0;
  while (at < text.size()) {
    size_t begin = std::string_view::npos, which = 0;
    for (size_t i = 0; i < added_.size(); ++i) {  // longest first: at the same place the longest wins
      if (next[i] != std::string_view::npos && next[i] < at) next[i] = text.find(added_[i].first, at);
      if (next[i] < begin) {
        begin = next[i];
        which = i;
      }
    }
    const size_t end = std::min(begin, text.size());
    if (end > at) encode_plain(text.substr(at, end - at), ids);
    if (begin == std::string_view::npos) break;
    ids.push_back(added_[which].second);
    at = begin + added_[which].first.size();
  }
  return ids;
}

void BpeTokenizer::encode_plain(std::string_view text, std::vector<int32_t>& ids) const {
  std::string prefixed;
  if (add_prefix_space_ && text.front() != ' ') {
    prefixed.reserve(text.size() + 1);
    prefixed.push_back(' ');
    prefixed.append(text);
    text = prefixed;
  }
  std::vector<std::string_view> pieces = {text};
  for (const auto& splitter : splitters_) {
    std::vector<std::string_view> finer;
    for (const auto piece : pieces) {
      const auto parts = splitter.split(piece);
      finer.insert(finer.end(), parts.begin(), parts.end());
    }
    pieces = std::move(finer);
  }
  for (const auto piece : pieces) encode_word(piece, ids);
}

void BpeTokenizer::encode_word(std::string_view word, std::vector<int32_t>& ids) const {
  if (ignore_merges_) {
    const auto whole = ids_.find(std::string(word));
    if (whole != ids_.end()) {
      ids.push_back(whole->second);
      return;
    }
  }
  // Symbols in a linked list; candidate merges in a queue by (rank, place). Each merge is O(log n), so that a long word
  // cannot make encoding quadratic. A candidate whose symbols have changed since is stale and is dropped.
  struct Symbol {
    int32_t id, previous, next;
  };
  struct Candidate {
    int32_t rank, left, left_id, right_id, result;
    bool operator>(const Candidate& other) const { return std::pair(rank, left) > std::pair(other.rank, other.left); }
  };
  if (word.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max()))
    misuse("a word of {} bytes is too long", word.size());
  std::vector<Symbol> symbols;
  for (const char c : word) {
    const int32_t id = byte_ids_[static_cast<unsigned char>(c)];
    if (id < 0) continue;  // a byte without a token is dropped, as Hugging Face does without an unk_token
    const auto here = static_cast<int32_t>(symbols.size());
    symbols.push_back({id, here - 1, here + 1});
  }
  if (symbols.empty()) return;
  symbols.back().next = -1;
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  const auto consider = [&](int32_t left) {
    if (left < 0 || symbols[left].next < 0) return;
    const int32_t right_id = symbols[symbols[left].next].id;
    const auto found = merges_.find(pair_key(symbols[left].id, right_id));
    if (found != merges_.end())
      queue.push({found->second.rank, left, symbols[left].id, right_id, found->second.result});
  };
  for (int32_t i = 0; i + 1 < static_cast<int32_t>(symbols.size()); ++i) consider(i);
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    Symbol& left = symbols[best.left];
    if (left.id != best.left_id || left.next < 0 || symbols[left.next].id != best.right_id) continue;
    const int32_t gone = left.next;
    left.id = best.result;
    left.next = symbols[gone].next;
    symbols[gone].id = -1;
    if (left.next >= 0) symbols[left.next].previous = best.left;
    consider(left.previous);
    consider(best.left);
  }
  for (int32_t i = 0; i >= 0; i = symbols[i].next) ids.push_back(symbols[i].id);
}

}  // namespace seqloom
