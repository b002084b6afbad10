#define PCRE2_CODE_UNIT_WIDTH 8
#include "io/regex_splitter.h"

#include <pcre2.h>

#include "base/error.h"
#include "io/utf8.h"

namespace seqloom {
namespace {

constexpr size_t kMaxPattern = 4096;  // bytes

std::string pcre_message(int code) {
  PCRE2_UCHAR text[256];
  pcre2_get_error_message(code, text, sizeof text);
  return reinterpret_cast<const char*>(text);
}

/// White space as Unicode and other engines have it. PCRE2 adds U+180E, and has the property only since 10.40.
constexpr std::string_view kSpaces =
    R"(\x09-\x0d\x20\x85\xa0\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";

/// The pattern with \s, and \S outside of classes, written out as kSpaces.
std::string with_unicode_spaces(const std::string& pattern) {
  std::string result;
  bool in_class = false;
  for (size_t at = 0; at < pattern.size(); ++at) {
    const std::string_view two = std::string_view(pattern).substr(at, 2);
    if (two == "\\s" || (two == "\\S" && !in_class)) {
      result += fmt::format("{}{}{}", in_class ? "" : two == "\\s" ? "[" : "[^", kSpaces, in_class ? "" : "]");
      ++at;
    } else if (two.front() == '\\') {
      result += two;
      ++at;
    } else {
      in_class = two.front() == '[' || (in_class && two.front() != ']');
      result += two.front();
    }
  }
  return result;
}

}  // namespace

RegexSplitter::RegexSplitter(const std::string& pattern, const std::string& name) : name_(name) {
  int error = 0;
  PCRE2_SIZE where = 0;
  if (pattern.size() > kMaxPattern) fail("{}: a pre-tokenizer's pattern of {} bytes", name, pattern.size());
  const std::string written = with_unicode_spaces(pattern);
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(written.data()), written.size(), PCRE2_UTF | PCRE2_UCP,
                                   &error, &where, nullptr);
  if (code == nullptr)
    fail("{}: the pre-tokenizer's pattern is not valid at offset {}: {}", name, where, pcre_message(error));
  code_ = std::shared_ptr<void>(code, [](void* p) { pcre2_code_free(static_cast<pcre2_code*>(p)); });
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // without it matching is merely slower
  // a hostile pattern must not backtrack for ever
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_set_match_limit(context, 10'000'000);
  pcre2_set_depth_limit(context, 100'000);
  match_ =
      std::shared_ptr<void>(context, [](void* p) { pcre2_match_context_free(static_cast<pcre2_match_context*>(p)); });
}

std::vector<std::string_view> RegexSplitter::split(std::string_view text) const {
  std::vector<std::string_view> pieces;
  while (!text.empty()) {
    const size_t valid = utf8_prefix(text);
    if (valid > 0) split_valid(text.substr(0, valid), pieces);
    text.remove_prefix(valid);
    if (text.empty()) break;
    pieces.push_back(text.substr(0, utf8_step(text).bytes));
    text.remove_prefix(pieces.back().size());
  }
  return pieces;
}

void RegexSplitter::split_valid(std::string_view text, std::vector<std::string_view>& pieces) const {
  auto* code = static_cast<pcre2_code*>(code_.get());
  const std::unique_ptr<pcre2_match_data, void (*)(pcre2_match_data*)> data(
      pcre2_match_data_create_from_pattern(code, nullptr), pcre2_match_data_free);
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  size_t done = 0, from = 0;
  while (from < text.size()) {
    const int result = pcre2_match(code, subject, text.size(), from, PCRE2_NO_UTF_CHECK, data.get(),
                                   static_cast<pcre2_match_context*>(match_.get()));
    if (result == PCRE2_ERROR_NOMATCH) break;
    if (result < 0) fail("{}: the pre-tokenizer's pattern gave up: {}", name_, pcre_message(result));
    const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(data.get());
    if (bounds[1] < bounds[0] || bounds[0] < done) fail("{}: the pre-tokenizer's pattern moves backwards", name_);
    if (bounds[1] == bounds[0]) {  // an empty match: step over one character
      from = bounds[1] + 1;
      while (from < text.size() && (static_cast<unsigned char>(text[from]) & 0xc0) == 0x80) ++from;
      continue;
    }
    if (bounds[0] > done) pieces.push_back(text.substr(done, bounds[0] - done));
    pieces.push_back(text.substr(bounds[0], bounds[1] - bounds[0]));
    done = from = bounds[1];
  }
  if (done < text.size()) pieces.push_back(text.substr(done));
}

}  // namespace seqloom
