#pragma once
#include <functional>
#include <string>

#include "serve/api.h"
#include "serve/http_server.h"
#include "serve/state_store.h"

namespace seqloom {

struct ServeOptions {
  std::string checkpoint, host = "127.0.0.1", name;
  int64_t port = 8080;
  EngineOptions engine;
  HttpLimits http;
  ApiOptions api;
  StateOptions states;
};

/// Serves a checkpoint until SIGTERM or SIGINT, which ends it as `drain` says: what runs is answered, what is new gets
/// 503; a second signal ends the process at once. `ready` hears the port.
void serve(const ServeOptions& options, const std::function<void(int port)>& ready);

}  // namespace seqloom
