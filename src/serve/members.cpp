#include "serve/members.h"

#include "io/json.h"

namespace seqloom {

const Members::Json* Members::find(const std::string& name) const {
  const auto member = body_.find(name);
  return member == body_.end() || member->is_null() ? nullptr : &*member;
}

bool Members::flag(const std::string& name) const {
  const Json* value = find(name);
  if (value != nullptr && !value->is_boolean()) refuse(name, "expected true or false");
  return value != nullptr && value->get<bool>();
}

std::string Members::text(const std::string& name) const {
  const Json* value = find(name);
  if (value != nullptr && !value->is_string()) refuse(name, "expected a text");
  return value == nullptr ? "" : value->get<std::string>();
}

int64_t Members::integer(const std::string& name, int64_t low, int64_t high, int64_t otherwise) const {
  const Json* value = find(name);
  if (value == nullptr) return otherwise;
  const bool fits = value->is_number_integer() && (!value->is_number_unsigned() || value->get<uint64_t>() <= INT64_MAX);
  if (!fits || value->get<int64_t>() < low || value->get<int64_t>() > high) {
    refuse(name, fmt::format("expected an integer from {} to {}", low, high));
  }
  return value->get<int64_t>();
}

void refuse(const std::string& param, const std::string& message) {
  throw ApiError(400, param + ": " + message, param);
}

Members::Json parse_body(std::string_view body) {
  Members::Json json;
  try {
    json = parse_ordered_json(body, "the body");
  } catch (const Error& error) {
    throw ApiError(400, error.what());
  }
  if (!json.is_object()) throw ApiError(400, "the body must be a JSON object");
  return json;
}

}  // namespace seqloom
