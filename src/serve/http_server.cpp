#include "serve/http_server.h"

#include <sys/resource.h>
#include <sys/socket.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <set>
#include <system_error>
#include <thread>

#include "base/error.h"
#include "serve/http_connection.h"

namespace seqloom {
namespace {

/// httplib hands over a task for each connection; the task itself decides about threads (Listener::connect).
class Inline final : public httplib::TaskQueue {
 public:
  void enqueue(std::function<void()> task) override { task(); }
  void shutdown() override {}
};

/// Files that this process may have open, after asking for as many as it can get.
int64_t open_files() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return 1024;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  getrlimit(RLIMIT_NOFILE, &limit);
  return limit.rlim_cur == RLIM_INFINITY ? INT64_MAX : static_cast<int64_t>(limit.rlim_cur);
}

thread_local HttpConnection* connection = nullptr;  // of this thread

}  // namespace

class HttpServer::Listener final : public httplib::Server {
 public:
  Listener(const HttpLimits& limits, Gate gate, HttpServer::Handler handler,
           std::function<HttpReply(int, const std::string&)> error_reply)
      : limits_(limits), gate_(std::move(gate)), handler_(std::move(handler)), error_reply_(std::move(error_reply)) {
    constexpr int64_t kOtherFiles = 64;
    limits_.connections = std::min(limits_.connections, std::max<int64_t>(1, open_files() - kOtherFiles));
    new_task_queue = [] { return new Inline; };
    set_keep_alive_timeout(limits_.idle_seconds);
    set_keep_alive_max_count(SIZE_MAX);
    set_payload_max_length(static_cast<size_t>(limits_.body_bytes));
    set_tcp_nodelay(true);
    set_socket_options([](socket_t socket) {  // httplib's own would share a port with another process that has it
      const int yes = 1;
      setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    });
    set_pre_routing_handler([this](const auto& request, auto& response) { return without_body(request, response); });
    const auto body = [this](const auto& request, auto& response, const auto& reader) {
      with_body(request, response, reader);
    };
    Post(".*", body).Put(".*", body).Patch(".*", body).Delete(".*", body);
    set_error_handler(httplib::Server::Handler([this](const httplib::Request&, httplib::Response& response) {
      if (response.body.empty() && !response.content_provider_) {
        apply(error_reply_(response.status, "this is not HTTP as the server takes it"), response);
      }
    }));
  }

  int bind(const std::string& host, int port) {
    const int bound = port == 0 ? bind_to_any_port(host) : bind_to_port(host, port) ? port : -1;
    if (bound < 0) fail("cannot listen on {}:{}: the address is taken, forbidden or unknown", host, port);
    constexpr int kBacklog = 1024;  // httplib's own is 5: of many clients at once most would have to try again
    ::listen(svr_sock_, kBacklog);
    return bound;
  }

  void start() {
    thread_ = std::thread([this] { listen_after_bind(); });
    while (!is_running()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }

  void finish() {
    stopping_ = true;
    stop();
    if (thread_.joinable()) thread_.join();
    std::unique_lock lock(mutex_);
    const auto none = [&] { return sockets_.empty(); };
    if (ended_.wait_for(lock, std::chrono::seconds(5), none)) return;
    for (HttpConnection* open : sockets_) open->shut();
    ended_.wait(lock, none);
  }

  int64_t connections() const {
    const std::lock_guard lock(mutex_);
    return static_cast<int64_t>(sockets_.size());
  }

 private:
  /// A connection that httplib has accepted.
  bool process_and_close_socket(socket_t socket) override {
    auto accepted = std::make_unique<HttpConnection>(socket, limits_);
    {
      const std::lock_guard lock(mutex_);
      if (static_cast<int64_t>(sockets_.size()) < limits_.connections)
        sockets_.insert(accepted.get());
      else
        return refuse(*accepted, "503 Service Unavailable");
    }
    try {
      std::thread([this, open = accepted.get()] { serve(open); }).detach();
      accepted.release();
      return true;
    } catch (const std::system_error&) {  // no more threads
      forget(accepted.get());
      return refuse(*accepted, "503 Service Unavailable");
    }
  }

  /// An answer without reading or waiting.
  static bool refuse(HttpConnection& open, std::string_view status) {
    const std::string answer =
        fmt::format("HTTP/1.1 {}\r\nConnection: close\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n", status);
    ::send(open.socket(), answer.data(), answer.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    return false;
  }

  void forget(HttpConnection* open) {
    const std::lock_guard lock(mutex_);
    sockets_.erase(open);
    ended_.notify_all();
  }

  void serve(HttpConnection* open) {
    connection = open;
    try {
      serve_requests(*open);
    } catch (const std::exception&) {  // no memory: this connection ends
    }
    {
      const std::lock_guard lock(mutex_);
      sockets_.erase(open);
      delete open;
      ended_.notify_all();
    }
  }

  void serve_requests(HttpConnection& open) {
    while (true) {
      const auto head = open.read_head([this] { return stopping_.load(); });
      if (head == HttpConnection::Head::kTooLarge) refuse(open, "431 Request Header Fields Too Large");
      if (head == HttpConnection::Head::kTooSlow) refuse(open, "408 Request Timeout");
      if (head == HttpConnection::Head::kClosed) return;
      if (head != HttpConnection::Head::kComplete) return open.linger();
      bool closes = false;
      const bool good = process_request(open, stopping_, closes, [](httplib::Request& request) {
        request.headers.erase(
            "Accept-Encoding");  // answers are small or streamed: compressing costs more than it saves
      });
      if (!good || closes || open.must_close || !open.routed || stopping_) return open.linger();
    }
  }

  static std::string header(const httplib::Request& request, const char* name) {
    return request.get_header_value(name);
  }

  /// What is wrong with a request's head, if anything.
  std::optional<HttpReply> refusal(const httplib::Request& request) const {
    if (request.path.size() > 256) return error_reply_(404, "there is no such route");
    const auto& headers = request.headers;
    const size_t lengths = headers.count("Content-Length"), encodings = headers.count("Transfer-Encoding");
    if (lengths + encodings > 1) return error_reply_(400, "the length of the body is given twice");
    const std::string length = header(request, "Content-Length");
    const bool digits = length.find_first_not_of("0123456789") == std::string::npos;
    if (lengths == 1 && (length.empty() || !digits)) return error_reply_(400, "Content-Length is not a number");
    if (length.size() > 15 || (lengths == 1 && std::stoll(length) > limits_.body_bytes)) {
      return error_reply_(413, fmt::format("the body has more than {} bytes", limits_.body_bytes));
    }
    if (encodings == 1 && header(request, "Transfer-Encoding") != "chunked") {
      return error_reply_(400, "Transfer-Encoding may only be chunked");
    }
    if (headers.count("Content-Encoding") > 0) return error_reply_(415, "compressed bodies are not taken");
    if (request.is_multipart_form_data()) return error_reply_(415, "forms are not taken; send JSON");
    return std::nullopt;
  }

  static HttpRequest request_of(const httplib::Request& request) {
    return {request.method == "HEAD" ? "GET" : request.method,
            request.path,
            header(request, "Authorization"),
            header(request, "Content-Type"),
            "",
            [open = connection] { return open->gone(); }};
  }

  HandlerResponse without_body(const httplib::Request& request, httplib::Response& response) {
    connection->routed = true;
    const bool length = header(request, "Content-Length").find_first_not_of('0') != std::string::npos;
    const bool body = length || request.headers.count("Transfer-Encoding") > 0;
    HttpRequest known = request_of(request);
    auto answer = refusal(request);
    if (!answer) answer = gate_(known);
    const bool takes_body =
        request.method == "POST" || request.method == "PUT" || request.method == "DELETE" || request.method == "PATCH";
    if (!answer && body && takes_body) return HandlerResponse::Unhandled;  // with_body goes on
    if (body) close_after(response);
    apply(answer ? std::move(*answer) : handler_(known), response);
    return HandlerResponse::Handled;
  }

  static void close_after(httplib::Response& response) {
    connection->must_close = true;
    response.set_header("Connection", "close");
  }

  void with_body(const httplib::Request& request, httplib::Response& response, const httplib::ContentReader& reader) {
    HttpRequest known = request_of(request);
    struct Held {
      std::atomic<int64_t>& all;
      int64_t bytes = 0;
      ~Held() { all -= bytes; }
    } held{bodies_};
    int status = 0;
    const bool whole = reader([&](const char* data, size_t size) {
      const auto more = static_cast<int64_t>(size);
      if (static_cast<int64_t>(known.body.size()) + more > limits_.body_bytes) {
        status = 413;
        return false;
      }
      held.bytes += more;
      if (bodies_.fetch_add(more) + more > limits_.all_bodies_bytes) {
        status = 503;
        return false;
      }
      known.body.append(data, size);
      return true;
    });
    if (whole) {
      apply(handler_(known), response);
    } else {
      if (status == 0) status = connection->too_slow() ? 408 : 400;
      apply(error_reply_(status, status == 413   ? fmt::format("the body has more than {} bytes", limits_.body_bytes)
                                 : status == 503 ? "too many large requests at once"
                                 : status == 408 ? fmt::format("the body took longer than {} s", limits_.body_seconds)
                                                 : "the body is cut short or its chunks are malformed"),
            response);
      close_after(response);
    }
  }

  static void apply(HttpReply reply, httplib::Response& response) {
    response.status = reply.status;
    for (const auto& [name, value] : reply.headers) response.set_header(name, value);
    if (!reply.stream) return response.set_content(reply.body, reply.content_type);
    response.set_chunked_content_provider(
        reply.content_type, [stream = std::move(reply.stream)](size_t, httplib::DataSink& sink) {
          stream([&](std::string_view piece) { return piece.empty() || sink.write(piece.data(), piece.size()); });
          sink.done();
          return true;
        });
  }

  HttpLimits limits_;
  Gate gate_;
  HttpServer::Handler handler_;
  std::function<HttpReply(int, const std::string&)> error_reply_;
  std::thread thread_;
  std::atomic<bool> stopping_ = false;
  std::atomic<int64_t> bodies_ = 0;  // bytes
  mutable std::mutex mutex_;
  std::condition_variable ended_;
  std::set<HttpConnection*> sockets_;
};

HttpServer::HttpServer(const HttpLimits& limits, Gate gate, Handler handler,
                       std::function<HttpReply(int status, const std::string& message)> error_reply)
    : listener_(std::make_unique<Listener>(limits, std::move(gate), std::move(handler), std::move(error_reply))) {}

HttpServer::~HttpServer() {
  stop();
}

int HttpServer::listen(const std::string& host, int port) {
  return listener_->bind(host, port);
}
void HttpServer::start() {
  listener_->start();
}
void HttpServer::stop() {
  listener_->finish();
}
int64_t HttpServer::connections() const {
  return listener_->connections();
}

}  // namespace seqloom
