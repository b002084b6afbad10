#pragma once
#include <string>

#include "base/error.h"
#include "serve/http_server.h"

namespace seqloom {

/// A request that cannot be answered, in the form that OpenAI's clients know.
struct ApiError : Error {
  ApiError(int status, const std::string& message, std::string param = "", std::string code = "")
      : Error(message), status(status), param(std::move(param)), code(std::move(code)) {}

  int status;
  std::string param, code;  // "": null
};

/// {"error": {"message", "type", "param", "code"}}, with Retry-After where trying again may help.
HttpReply error_reply(const ApiError& error);
/// The same as the object alone, for a stream that has begun.
std::string error_json(const ApiError& error);

}  // namespace seqloom
