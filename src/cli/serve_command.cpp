#include <cstdio>
#include <cstdlib>
#include <memory>

#include "base/error.h"
#include "cli/commands.h"
#include "io/mapped_file.h"
#include "serve/server.h"

namespace seqloom {
namespace {

/// From the file, else from the environment. Never from the command line, which everybody on the machine can read.
std::string api_key(const std::string& file) {
  constexpr size_t kLongest = 4096;
  std::string key;
  if (!file.empty()) {
    key = read_file(file, kLongest);
  } else if (const char* variable = std::getenv("SEQLOOM_API_KEY")) {
    key = variable;
  }
  while (!key.empty() && (key.back() == '\n' || key.back() == '\r')) key.pop_back();
  if (!file.empty() && key.empty()) misuse("{}: holds no key", file);
  return key;
}

/// An option --some-name for each field "some_name".
void add_fields(CLI::App& command, const Fields& fields) {
  for (const auto& field : fields.list()) {
    std::string name = "--" + field.name();
    for (char& c : name) c = c == '_' ? '-' : c;
    const std::string help = fmt::format("{} ({})", field.help(), field.get().dump());
    command.add_option_function<std::string>(
        name,
        [field, name](const std::string& text) {
          const Config value = field.get().is_string() ? Config(text) : Config::parse(text, nullptr, false);
          field.set(value.is_discarded() ? Config(text) : value, name);
        },
        help);
  }
}

}  // namespace

void add_serve_command(CLI::App& app) {
  auto options = std::make_shared<ServeOptions>();
  auto key_file = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand("serve", "Answer HTTP requests as OpenAI's API has them, with saved states");
  command->footer(
      "Examples:\n"
      "  seqloom serve runs/scripture --port 8080 --states states\n"
      "  curl localhost:8080/v1/completions -d '{\"prompt\": \"In the\", \"max_tokens\": 40, \"stream\": true}'\n"
      "  SEQLOOM_API_KEY=$(cat key) seqloom serve runs/chat --host 0.0.0.0\n"
      "Routes: /v1/completions /v1/chat/completions /v1/embeddings /v1/models /v1/states /health /metrics.\n"
      "SIGTERM finishes what runs; a second one ends at once.");
  command->add_option("CHECKPOINT", options->checkpoint, "a run's folder or checkpoint file")->required();
  command->add_option("--host", options->host, "address to listen on (127.0.0.1: this machine alone)");
  command->add_option("--port", options->port, "0: any free one (8080)")->check(CLI::Range(0, 65535));
  command->add_option("--name", options->name, "the model's name in answers (the checkpoint's)");
  command->add_option("--api-key-file", *key_file, "ask for this key; or set SEQLOOM_API_KEY");
  Fields fields;
  options->engine.describe(fields);
  options->http.describe(fields);
  options->api.describe(fields);
  options->states.describe(fields);
  add_fields(*command, fields);
  command->callback([options, key_file] {
    options->api.key = api_key(*key_file);
    serve(*options, [&](int port) {
      fmt::print("seqloom: listening on http://{}:{}\n", options->host, port);
      std::fflush(stdout);
    });
  });
}

}  // namespace seqloom
