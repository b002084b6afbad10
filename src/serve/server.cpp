#include "serve/server.h"

#include <signal.h>
#include <unistd.h>

#include <filesystem>
#include <thread>

#include "io/json.h"

namespace seqloom {
namespace {

/// SIGTERM and SIGINT, held back in this thread and in all that it starts, until someone waits for them.
class Signals {
 public:
  Signals() {
    sigemptyset(&set_);
    sigaddset(&set_, SIGTERM);
    sigaddset(&set_, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set_, &old_);
  }
  ~Signals() { pthread_sigmask(SIG_SETMASK, &old_, nullptr); }
  Signals(const Signals&) = delete;
  Signals& operator=(const Signals&) = delete;

  void wait() const {
    int number = 0;
    while (sigwait(&set_, &number) != 0) {
    }
  }
  /// From now on a signal ends the process at once.
  void end_at_next() const {
    std::thread([set = set_] {
      int number = 0;
      sigwait(&set, &number);
      _exit(128 + number);
    }).detach();
  }

 private:
  sigset_t set_{}, old_{};
};

std::string model_name(const ServeOptions& options) {
  if (!options.name.empty()) return options.name;
  const auto path = std::filesystem::path(options.checkpoint).lexically_normal();
  return path.has_filename() ? path.filename().string() : path.parent_path().filename().string();
}

bool makes_vectors(const std::string& checkpoint) {
  const Config task = member(open_checkpoint(checkpoint).recipe, "task");
  return text_at(task, "kind") == "sentence_embedding";
}

}  // namespace

void serve(const ServeOptions& options, const std::function<void(int port)>& ready) {
  const Signals signals;
  const std::string name = model_name(options);
  std::unique_ptr<LanguageService> language;
  std::unique_ptr<Embedder> embedder;
  if (makes_vectors(options.checkpoint)) {
    embedder = std::make_unique<Embedder>(load_sentence_model(options.checkpoint), options.engine.max_queue);
  } else {
    language = std::make_unique<LanguageService>(load_language_model(options.checkpoint), name, options.states,
                                                 options.engine);
  }
  HttpServer* connections = nullptr;
  Api api({name, language.get(), embedder.get()}, options.api,
          [&] { return connections == nullptr ? 0 : connections->connections(); });
  HttpServer http(
      options.http, [&](const HttpRequest& request) { return api.gate(request); },
      [&](HttpRequest& request) { return api.handle(request); },
      [](int status, const std::string& message) { return error_reply(ApiError(status, message)); });
  connections = &http;
  const int port = http.listen(options.host, static_cast<int>(options.port));
  http.start();
  ready(port);
  signals.wait();
  signals.end_at_next();
  api.refuse_new();
  if (language) language->engine.drain();
  while (api.busy() > 0) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  http.stop();
}

}  // namespace seqloom
