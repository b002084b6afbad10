#include "serve/http_connection.h"

#include <poll.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace seqloom {
namespace {

using std::chrono::seconds;

/// Turns the header Range into one that nobody knows: answers have no ranges, and httplib takes it apart with a regular
/// expression whose stack grows with the text.
void hide_ranges(std::string& head) {
  for (size_t line = head.find('\n'); line != std::string::npos; line = head.find('\n', line + 1)) {
    if (strncasecmp(head.c_str() + line + 1, "range", 5) == 0) head[line + 1] = 'x';
  }
}

}  // namespace

HttpConnection::HttpConnection(int socket, const HttpLimits& limits) : socket_(socket), limits_(limits) {}

HttpConnection::~HttpConnection() {
  close(socket_);
}

bool HttpConnection::wait(short events, Clock::time_point until) const {
  while (true) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(until - Clock::now()).count();
    if (left <= 0) return false;
    pollfd entry{socket_, events, 0};
    const int ready = poll(&entry, 1, static_cast<int>(std::min<int64_t>(left, 1000)));
    if (ready > 0) return true;
    if (ready < 0 && errno != EINTR) return true;  // the call that follows says what is wrong
  }
}

HttpConnection::Head HttpConnection::receive_more(Clock::time_point until) {
  if (!wait(POLLIN, until)) return Head::kTooSlow;
  char piece[4096];
  const ssize_t count = recv(socket_, piece, sizeof piece, 0);
  if (count <= 0) return Head::kClosed;
  buffer_.append(piece, static_cast<size_t>(count));
  return Head::kComplete;
}

HttpConnection::Head HttpConnection::read_head(const std::function<bool()>& stopping) {
  buffer_.erase(0, at_);
  at_ = 0;
  routed = false;
  const auto idle_until = Clock::now() + seconds(limits_.idle_seconds);
  while (buffer_.empty()) {
    if (stopping()) return Head::kClosed;
    const Head more = receive_more(std::min(idle_until, Clock::now() + std::chrono::milliseconds(500)));
    if (more == Head::kClosed || (more == Head::kTooSlow && Clock::now() >= idle_until)) return Head::kClosed;
  }
  const auto until = Clock::now() + seconds(limits_.head_seconds);
  size_t end = 0;
  while ((end = buffer_.find("\r\n\r\n")) == std::string::npos) {
    if (buffer_.size() >= HttpLimits::kHeadBytes) return Head::kTooLarge;
    const Head more = receive_more(until);
    if (more != Head::kComplete) return more;
  }
  if (end >= HttpLimits::kHeadBytes) return Head::kTooLarge;
  std::string head = buffer_.substr(0, end);
  hide_ranges(head);
  buffer_.replace(0, end, head);
  body_deadline_ = Clock::now() + seconds(limits_.body_seconds);
  return Head::kComplete;
}

ssize_t HttpConnection::read(char* data, size_t size) {
  if (at_ == buffer_.size()) {
    buffer_.clear();
    at_ = 0;
    const Head more = receive_more(body_deadline_);
    too_slow_ = more == Head::kTooSlow;
    if (more != Head::kComplete) return more == Head::kClosed ? 0 : -1;
  }
  const size_t count = std::min(size, buffer_.size() - at_);
  std::copy_n(buffer_.data() + at_, count, data);
  at_ += count;
  if (size == 1) line_ = *data == '\n' ? 0 : line_ + 1;
  if (line_ > HttpLimits::kHeadBytes) return -1;
  return static_cast<ssize_t>(count);
}

ssize_t HttpConnection::write(const char* data, size_t size) {
  const auto until = Clock::now() + seconds(limits_.write_seconds);
  while (wait(POLLOUT, until)) {
    const ssize_t sent = send(socket_, data, size, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent >= 0 || (errno != EAGAIN && errno != EINTR)) return sent;
  }
  return -1;
}

bool HttpConnection::gone() const {
  pollfd entry{socket_, POLLRDHUP, 0};
  return poll(&entry, 1, 0) > 0 && (entry.revents & (POLLRDHUP | POLLHUP | POLLERR | POLLNVAL)) != 0;
}

void HttpConnection::linger() {
  shutdown(socket_, SHUT_WR);
  const auto until = Clock::now() + seconds(2);
  constexpr size_t kMost = size_t{64} << 20;
  for (size_t total = 0; total < kMost && wait(POLLIN, until);) {
    char piece[65536];
    const ssize_t count = recv(socket_, piece, sizeof piece, 0);
    if (count <= 0) return;
    total += static_cast<size_t>(count);
  }
}

void HttpConnection::shut() {
  shutdown(socket_, SHUT_RDWR);
}

void HttpConnection::get_remote_ip_and_port(std::string& ip, int& port) const {
  ip.clear();
  port = 0;
}
void HttpConnection::get_local_ip_and_port(std::string& ip, int& port) const {
  ip.clear();
  port = 0;
}

}  // namespace seqloom
