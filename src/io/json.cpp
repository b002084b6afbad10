#include "io/json.h"

#include <set>

namespace seqloom {
namespace {

constexpr int kMaxDepth = 64;

}  // namespace

Config parse_json(std::string_view text, const std::string& name) {
  std::vector<std::set<std::string>> keys;  // of the objects that are open
  const auto watch = [&](int depth, Config::parse_event_t event, Config& parsed) {
    if (depth > kMaxDepth) fail("{}: JSON nested deeper than {} levels", name, kMaxDepth);
    if (event == Config::parse_event_t::object_start) keys.emplace_back();
    if (event == Config::parse_event_t::object_end) keys.pop_back();
    if (event == Config::parse_event_t::key && !keys.back().insert(parsed.get<std::string>()).second) {
      fail("{}: the key {} occurs twice", name, parsed.dump());
    }
    return true;
  };
  try {
    return Config::parse(text.begin(), text.end(), watch);
  } catch (const Config::exception& error) {
    fail("{}: not valid JSON: {}", name, error.what());
  }
}

}  // namespace seqloom
