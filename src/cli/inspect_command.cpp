#include <memory>

#include "base/error.h"
#include "cli/commands.h"
#include "cli/progress.h"
#include "io/safetensors.h"
#include "train/checkpoint.h"

namespace seqloom {
namespace {

Config describe_file(const std::string& path) {
  const Safetensors file(path);
  Config tensors = Config::array();
  int64_t bytes = 0;
  for (const auto& [name, info] : file.tensors()) {
    tensors.push_back({{"name", name}, {"dtype", info.dtype}, {"shape", info.shape}});
    bytes += static_cast<int64_t>(info.end - info.begin);
  }
  Config metadata = Config::object();
  for (const auto& [key, value] : file.metadata()) {
    const Config parsed = Config::parse(value, nullptr, /*allow_exceptions=*/false);
    metadata[key] = parsed.is_structured() ? parsed : Config(value);
  }
  const auto format = file.metadata().find("format");
  return {{"file", path},
          {"format", format == file.metadata().end() ? "safetensors" : format->second},
          {"bytes", bytes},
          {"metadata", metadata},
          {"tensors", tensors}};
}

void inspect(const std::string& path, bool json) {
  const Config about = describe_file(checkpoint_file(path));
  if (json) {
    fmt::print("{}\n", about.dump(-1, ' ', false, Config::error_handler_t::replace));
    return;
  }
  fmt::print("{}: {}, {} tensors, {}B\n", about["file"].get<std::string>(), about["format"].get<std::string>(),
             about["tensors"].size(), short_number(about["bytes"].get<double>()));
  for (const auto& [key, value] : about["metadata"].items()) {
    std::string text = value.is_string() ? value.get<std::string>() : value.dump();
    if (text.size() > 2000) text = fmt::format("({} bytes)", text.size());
    fmt::print("  {} = {}\n", key, text);
  }
  for (const auto& tensor : about["tensors"]) {
    fmt::print("  {:<6} {:<20} {}\n", tensor["dtype"].get<std::string>(), tensor["shape"].dump(),
               tensor["name"].get<std::string>());
  }
}

}  // namespace

void add_inspect_command(CLI::App& app) {
  auto path = std::make_shared<std::string>();
  auto json = std::make_shared<bool>(false);
  CLI::App* command = app.add_subcommand("inspect", "Show what a safetensors file, checkpoint or state holds");
  command->footer("Examples:\n  seqloom inspect runs/scripture\n  seqloom inspect s.safetensors --json");
  command->add_option("FILE", *path, "a safetensors file, a checkpoint, a run's folder or a saved state")->required();
  command->add_flag("--json", *json, "print as JSON");
  command->callback([path, json] { inspect(*path, *json); });
}

}  // namespace seqloom
