#include "huggingface/family.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "io/json.h"

namespace seqloom::huggingface {

Registry<Family>& families() {
  static Registry<Family> registry("family of checkpoints");
  return registry;
}

std::string family_of(const ConfigFile& file) {
  for (const auto& name : families().names()) {
    if (families().get(name).owns(file.values)) return name;
  }
  const Config& type = member(file.values, "model_type");
  fail("{}: model_type is {}: no family of checkpoints that seqloom reads; there are: {}", file.name,
       type.is_null() ? "missing" : printable(type.dump()), fmt::join(families().names(), ", "));
}

std::function<bool(const Config&)> has_model_type(const std::string& type) {
  return [type](const Config& config) { return member(config, "model_type") == type; };
}

bool ends_in(const std::string& name, const std::vector<std::string>& ends) {
  return std::any_of(ends.begin(), ends.end(), [&](const auto& end) { return name.ends_with(end); });
}

std::string prefixed(const std::string& name, const std::string& prefix) {
  return name.starts_with(prefix) ? name : prefix + name;
}

}  // namespace seqloom::huggingface
