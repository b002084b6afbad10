#include "io/jinja/template.h"

#include "base/error.h"
#include "io/jinja/renderer.h"
#include "io/jinja/syntax.h"

namespace seqloom {
namespace {

constexpr size_t kMaxSource = size_t{1} << 20;
/// What a rendering may cost for itself and for each byte of its variables.
constexpr int64_t kUnits = 10'000'000, kUnitsPerByte = 32;

int64_t size_of(const nlohmann::ordered_json& json) {
  if (json.is_string()) return 1 + static_cast<int64_t>(json.get_ref<const std::string&>().size());
  int64_t size = 1;
  if (json.is_object()) {
    for (const auto& [key, value] : json.items()) size += static_cast<int64_t>(key.size()) + size_of(value);
  } else if (json.is_array()) {
    for (const auto& value : json) size += size_of(value);
  }
  return size;
}

}  // namespace

JinjaTemplate::JinjaTemplate(std::string_view source, std::string name) : name_(std::move(name)) {
  if (source.size() > kMaxSource) fail("{}: {} bytes are too long for a template", name_, source.size());
  try {
    syntax_ = std::make_unique<const jinja::Syntax>(jinja::parse(source));
  } catch (const Error& error) {
    fail("{}: {}", name_, error.what());
  }
}

JinjaTemplate::~JinjaTemplate() = default;
JinjaTemplate::JinjaTemplate(JinjaTemplate&&) noexcept = default;
JinjaTemplate& JinjaTemplate::operator=(JinjaTemplate&&) noexcept = default;

std::string JinjaTemplate::render(const nlohmann::ordered_json& variables) const {
  jinja::Budget budget(kUnits + kUnitsPerByte * size_of(variables));
  jinja::Renderer renderer(*syntax_, budget);
  try {
    return renderer.run(jinja::Value::from_json(variables));
  } catch (const Error& error) {
    fail("{}: line {}: {}", name_, renderer.line(), error.what());
  }
}

}  // namespace seqloom
