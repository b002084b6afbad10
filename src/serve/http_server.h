#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/fields.h"

namespace seqloom {

/// A request as the routes see it; the body is there in full.
struct HttpRequest {
  std::string method, path, authorization, content_type, body;
  /// Whether the client has closed its connection.
  std::function<bool()> gone;
};

struct HttpReply {
  using Write = std::function<bool(std::string_view)>;

  int status = 200;
  std::string content_type = "application/json", body;
  std::vector<std::pair<std::string, std::string>> headers;
  /// Where set, makes the body in pieces, on the connection's thread; `write` returns false when the client is gone.
  std::function<void(const Write& write)> stream;
};

struct HttpLimits {
  int64_t connections = 2048, body_bytes = 4 << 20, all_bodies_bytes = 256 << 20;
  int64_t head_seconds = 10, body_seconds = 30, idle_seconds = 30, write_seconds = 30;
  static constexpr int64_t kHeadBytes = 16384;  // request line and headers

  void describe(Fields& f) {
    f.add("max_connections", connections, "connections at once; more are answered 503").at_least(1).at_most(1 << 20);
    f.add("max_body", body_bytes, "bytes of a request's body").at_least(1).at_most(int64_t{1} << 32);
    f.add("max_bodies", all_bodies_bytes, "bytes of all bodies that are being read or worked on").at_least(1);
    f.add("head_seconds", head_seconds, "for a request's line and headers to arrive").at_least(1).at_most(3600);
    f.add("body_seconds", body_seconds, "for a request's body to arrive").at_least(1).at_most(3600);
    f.add("idle_seconds", idle_seconds, "a connection may stand unused").at_least(1).at_most(3600);
    f.add("write_seconds", write_seconds, "a client may take nothing of its answer").at_least(1).at_most(3600);
  }
};

/// The socket side: connections, their limits and HTTP. Every connection has a thread of its own (what that takes is in
/// docs/serving.md); so that no client can hold up another, there are at most `connections`, and what comes beyond is
/// answered 503 by the accepting thread and closed. A request must arrive within the limits' seconds and bytes; bodies
/// are plain or chunked, never compressed.
class HttpServer {
 public:
  using Handler = std::function<HttpReply(HttpRequest&)>;
  /// Looks at a request before its body is read (which is empty then); what it returns is the answer.
  using Gate = std::function<std::optional<HttpReply>(const HttpRequest&)>;

  /// `error_reply` makes the answer for what goes wrong here.
  HttpServer(const HttpLimits& limits, Gate gate, Handler handler,
             std::function<HttpReply(int status, const std::string& message)> error_reply);
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  /// Throws Error when the address is taken or unknown. Port 0: any free one. Returns the port.
  int listen(const std::string& host, int port);
  /// Takes connections until stop(), from a thread of its own.
  void start();
  /// Closes the listening socket and lets connections end: those that are answering first.
  void stop();
  int64_t connections() const;

 private:
  class Listener;
  std::unique_ptr<Listener> listener_;
};

}  // namespace seqloom
