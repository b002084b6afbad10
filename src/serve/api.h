#pragma once
#include <atomic>
#include <chrono>
#include <functional>
#include <optional>
#include <semaphore>
#include <string>

#include "serve/completion.h"
#include "serve/embedder.h"
#include "serve/language_service.h"
#include "serve/metrics.h"

namespace seqloom {

struct ApiOptions {
  RequestLimits limits;
  int64_t max_prompt = 1 << 20;  // tokens of all prompts of a request
  int64_t request_seconds = 600;
  std::string key;  // "": none is asked for

  void describe(Fields& f) {
    f.add("max_tokens", limits.max_tokens, "tokens that a request may ask for").at_least(1);
    f.add("default_tokens", limits.default_tokens, "tokens when a request does not say").at_least(1);
    f.add("max_choices", limits.choices, "texts that a request may ask for").at_least(1).at_most(1024);
    f.add("max_prompt", max_prompt, "tokens that the prompts of a request may have").at_least(1);
    f.add("request_seconds", request_seconds, "that an answer may take").at_least(1).at_most(1 << 30);
  }
};

/// What there is to serve: a decoder or an encoder, the other is null.
struct Served {
  std::string name;
  LanguageService* language = nullptr;
  Embedder* embedder = nullptr;
};

/// The routes: what each request gets. Called from the connections' threads.
class Api {
 public:
  Api(Served served, ApiOptions options, std::function<int64_t()> connections);

  /// Looks at a request before its body is read: the key, and whether there is such a route.
  std::optional<HttpReply> gate(const HttpRequest& request);
  HttpReply handle(HttpRequest& request);
  /// From now on nothing new is begun: 503.
  void refuse_new() { draining_ = true; }
  /// Answers that are being made or written.
  int64_t busy() const { return busy_; }

 private:
  using Method = HttpReply (Api::*)(HttpRequest& request);
  enum class Needs { kNothing, kDecoder, kEncoder };
  struct Entry {
    const char* method;
    const char* path;  // a '*' stands for a state's id
    const char* name;  // in the metrics
    Needs needs;
    Method call;
  };
  static const Entry kRoutes[];
  static const Entry* find(const std::string& method, const std::string& path, bool& known_path);

  HttpReply completions(HttpRequest& request);
  HttpReply chat_completions(HttpRequest& request);
  HttpReply embeddings(HttpRequest& request);
  HttpReply models(HttpRequest& request);
  HttpReply health(HttpRequest& request);
  HttpReply metrics(HttpRequest& request);
  HttpReply list_states(HttpRequest& request);
  HttpReply make_state(HttpRequest& request);
  HttpReply show_state(HttpRequest& request);
  HttpReply download_state(HttpRequest& request);
  HttpReply delete_state(HttpRequest& request);
  HttpReply fork_state(HttpRequest& request);

  struct Parsed {
    CompletionRequest request;
    std::vector<std::vector<int64_t>> prompts;
  };
  Parsed parse(const std::string& body, Route route);
  HttpReply complete(HttpRequest& request, Route route);
  std::shared_ptr<void> begin_answer();
  void check_served(Needs needs) const;
  HttpReply counted(const char* route, HttpReply reply, Completion::Clock::time_point begin);
  bool has_key(const std::string& authorization) const;
  void check_not_draining() const;
  void check_length(int64_t tokens, const char* param) const;

  Served served_;
  ApiOptions options_;
  std::function<int64_t()> connections_;
  Metrics metrics_;
  std::counting_semaphore<> slots_;  // requests that are being taken apart, which takes processor time and memory
  std::atomic<bool> draining_ = false;
  std::atomic<int64_t> busy_ = 0;
};

}  // namespace seqloom
