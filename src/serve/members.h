#pragma once
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "serve/errors.h"

namespace seqloom {

/// The members of a request's JSON body by name; null counts as absent. What is not as expected is refused by name.
class Members {
 public:
  using Json = nlohmann::ordered_json;

  /// Refers to `body`, a JSON object.
  explicit Members(const Json& body) : body_(body) {}

  const Json* find(const std::string& name) const;
  bool flag(const std::string& name) const;
  std::string text(const std::string& name) const;
  int64_t integer(const std::string& name, int64_t low, int64_t high, int64_t otherwise) const;

 private:
  const Json& body_;
};

/// Throws ApiError with status 400.
[[noreturn]] void refuse(const std::string& param, const std::string& message);

/// A body that is a JSON object. Throws ApiError with status 400.
Members::Json parse_body(std::string_view body);

}  // namespace seqloom
