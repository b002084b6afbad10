#include "serve/errors.h"

namespace seqloom {
namespace {

std::string type_of(int status) {
  if (status == 401) return "authentication_error";
  if (status == 429) return "rate_limit_error";
  return status >= 500 ? "server_error" : "invalid_request_error";
}

}  // namespace

std::string error_json(const ApiError& error) {
  const auto or_null = [](const std::string& text) { return text.empty() ? Config() : Config(text); };
  const Config body = {{"error",
                        {{"message", error.what()},
                         {"type", type_of(error.status)},
                         {"param", or_null(error.param)},
                         {"code", or_null(error.code)}}}};
  return body.dump(-1, ' ', false, Config::error_handler_t::replace);
}

HttpReply error_reply(const ApiError& error) {
  HttpReply reply;
  reply.status = error.status;
  reply.body = error_json(error);
  if (error.status == 429 || error.status == 503) reply.headers.emplace_back("Retry-After", "1");
  if (error.status == 401) reply.headers.emplace_back("WWW-Authenticate", "Bearer");
  return reply;
}

}  // namespace seqloom
