#include "io/json.h"

#include <algorithm>

#include "io/utf8.h"

namespace seqloom {
namespace {

constexpr size_t kMaxDepth = 64;
constexpr size_t kMaxValues = 10'000'000;
constexpr size_t kMaxOrderedKeys = 512;

/// Builds the tree from the parser's events. The parser's own builder keeps the last of two equal keys, and with a
/// callback that could notice them it takes time quadratic in the number of tables.
template <typename Json>
class Builder final : public nlohmann::json_sax<Json> {
  using typename nlohmann::json_sax<Json>::binary_t;
  using typename nlohmann::json_sax<Json>::number_float_t;
  using typename nlohmann::json_sax<Json>::number_integer_t;
  using typename nlohmann::json_sax<Json>::number_unsigned_t;
  using typename nlohmann::json_sax<Json>::string_t;

 public:
  Builder(Json& root, const std::string& name) : root_(root), name_(name) {}

  bool null() override { return add(nullptr); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(number_integer_t value) override { return add(value); }
  bool number_unsigned(number_unsigned_t value) override { return add(value); }
  bool number_float(number_float_t value, const string_t&) override { return add(value); }
  bool string(string_t& value) override { return add(std::move(value)); }
  bool binary(binary_t& value) override { return add(std::move(value)); }
  bool start_object(size_t) override { return open(Json::object()); }
  bool start_array(size_t) override { return open(Json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t& value) override {
    auto& table = open_.back()->template get_ref<typename Json::object_t&>();
    if (std::is_same_v<Json, nlohmann::ordered_json> && table.size() == kMaxOrderedKeys) {
      fail("{}: a table of more than {} keys", name_, kMaxOrderedKeys);
    }
    const auto [place, is_new] = table.emplace(value, nullptr);
    if (!is_new) fail("{}: the key '{}' occurs twice", name_, printable(value));
    place_ = &place->second;
    return true;
  }
  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception& error) override {
    std::string_view what = error.what();  // "[json.exception.parse_error.101] parse error at line 1, column 2: ..."
    what.remove_prefix(std::min(what.find(' '), what.size() - 1) + 1);
    fail("{}: not valid JSON: {}", name_, printable(what, 240));
  }

 private:
  Json& insert(Json value) {
    if (++values_ > kMaxValues) fail("{}: more than {} JSON values", name_, kMaxValues);
    if (open_.empty()) return root_ = std::move(value);
    if (open_.back()->is_object()) return *place_ = std::move(value);
    open_.back()->push_back(std::move(value));
    return open_.back()->back();
  }
  bool add(Json value) {
    insert(std::move(value));
    return true;
  }
  bool open(Json value) {
    if (open_.size() == kMaxDepth) fail("{}: JSON nested deeper than {} levels", name_, kMaxDepth);
    open_.push_back(&insert(std::move(value)));
    return true;
  }
  bool close() {
    open_.pop_back();
    return true;
  }

  Json& root_;
  const std::string& name_;
  std::vector<Json*> open_;  // tables and lists that are not closed; a parent does not grow while a child is open
  Json* place_ = nullptr;    // of the last key
  size_t values_ = 0;
};

template <typename Json>
Json parsed(std::string_view text, const std::string& name) {
  Json root;
  Builder<Json> builder(root, name);
  Json::sax_parse(text.begin(), text.end(), &builder);
  return root;
}

}  // namespace

Config parse_json(std::string_view text, const std::string& name) {
  return parsed<Config>(text, name);
}

nlohmann::ordered_json parse_ordered_json(std::string_view text, const std::string& name) {
  return parsed<nlohmann::ordered_json>(text, name);
}

const Config& member(const Config& table, const std::string& key) {
  static const Config nothing;
  const auto found = table.is_object() ? table.find(key) : table.end();
  return table.is_object() && found != table.end() ? *found : nothing;
}

bool flag_at(const Config& table, const std::string& key, bool otherwise) {
  const Config& value = member(table, key);
  return value.is_boolean() ? value.get<bool>() : otherwise;
}

std::string text_at(const Config& table, const std::string& key, const std::string& otherwise) {
  const Config& value = member(table, key);
  return value.is_string() ? value.get<std::string>() : otherwise;
}

std::string printable(std::string_view text, size_t limit) {
  std::string result;
  while (!text.empty()) {
    if (result.size() >= limit) return result + "...";
    const Utf8Step step = utf8_step(text);
    const auto first = static_cast<unsigned char>(text.front());
    if (step.kind == Utf8Step::Kind::kWhole && first >= 0x20 && first != 0x7f) {
      result += text.substr(0, step.bytes);
    } else {
      for (const char c : text.substr(0, step.bytes)) result += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    }
    text.remove_prefix(step.bytes);
  }
  return result;
}

}  // namespace seqloom
