#pragma once
#include <httplib.h>

#include <chrono>
#include <string>

#include "serve/http_server.h"

namespace seqloom {

/// A client's connection as httplib reads and writes it, with deadlines and with a bound on a request's head, neither
/// of which httplib has: it reads lines of any length, and every byte that arrives gives a slow client more time.
class HttpConnection final : public httplib::Stream {
 public:
  enum class Head { kComplete, kClosed, kTooLarge, kTooSlow };

  /// Owns the socket.
  HttpConnection(int socket, const HttpLimits& limits);
  ~HttpConnection() override;
  HttpConnection(const HttpConnection&) = delete;
  HttpConnection& operator=(const HttpConnection&) = delete;

  /// Waits for a request's line and headers, up to the empty line. `stopping` ends the wait for its first byte.
  Head read_head(const std::function<bool()>& stopping);
  /// Whether the peer has closed its side, or the connection is broken.
  bool gone() const;
  /// Whether the body's time was up.
  bool too_slow() const { return too_slow_; }
  /// Ends our side and reads what still comes, for a short while: closing at once would reset the connection, and the
  /// client might lose the answer that it has not read yet.
  void linger();
  void shut();

  /// What the connection's thread keeps of its present request.
  bool routed = false, must_close = false;

  bool is_readable() const override { return true; }
  bool is_writable() const override { return !gone(); }
  ssize_t read(char* data, size_t size) override;
  ssize_t write(const char* data, size_t size) override;
  void get_remote_ip_and_port(std::string& ip, int& port) const override;
  void get_local_ip_and_port(std::string& ip, int& port) const override;
  socket_t socket() const override { return socket_; }

 private:
  using Clock = std::chrono::steady_clock;

  bool wait(short events, Clock::time_point until) const;
  Head receive_more(Clock::time_point until);

  int socket_;
  HttpLimits limits_;
  std::string buffer_;  // received, not yet read: from at_ on
  size_t at_ = 0;
  int64_t line_ = 0;  // bytes read one by one since a line's end: httplib reads lines so, chunks' too, of any length
  Clock::time_point body_deadline_;
  bool too_slow_ = false;
};

}  // namespace seqloom
