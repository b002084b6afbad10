#include <memory>

#include "cli/commands.h"
#include "io/toml.h"
#include "mixers/mixer.h"

namespace seqloom {
namespace {

/// The forms that a mixer has with its default options, found by asking a small one.
Config forms(const std::string& name) {
  constexpr int64_t kWidth = 24;
  Config table = parse_toml(mixers().get(name).trials.front(), name);
  table["kind"] = name;
  const torch::NoGradGuard no_grad;
  const auto mixer = make_mixer(kWidth, table, name);
  const bool streams = mixer->causal() && dynamic_cast<CausalMixer*>(mixer.get()) != nullptr;
  const bool scans = streams && dynamic_cast<ScannableMixer*>(mixer.get()) != nullptr;
  return {
      {"extend", streams}, {"summarize", scans}, {"matrix", mixer->matrix(torch::zeros({1, 4, kWidth})).has_value()}};
}

Config describe(const std::string& name) {
  Config options = Config::array();
  const Fields fields = mixers().get(name).fields();
  for (const auto& field : fields.list()) {
    options.push_back({{"name", field.name()},
                       {"type", field.type()},
                       {"default", field.get()},
                       {"range", field.range()},
                       {"help", field.help()}});
  }
  return {{"name", name}, {"about", mixers().get(name).about}, {"forms", forms(name)}, {"options", options}};
}

void list_mixers(bool json) {
  Config all = Config::array();
  for (const auto& name : mixers().names()) all.push_back(describe(name));
  if (json) {
    fmt::print("{}\n", all.dump());
    return;
  }
  for (const auto& mixer : all) {
    std::string has = "forward";
    for (const auto& [form, present] : mixer["forms"].items()) {
      if (present.get<bool>()) has += ", " + form;
    }
    fmt::print("{:<18} {}\n{:<18} [{}]\n", mixer["name"].get<std::string>(), mixer["about"].get<std::string>(), "",
               has);
  }
  fmt::print("\nseqloom mixers show NAME lists a mixer's options.\n");
}

void show_mixer(const std::string& name, bool json) {
  const Config mixer = describe(name);
  if (json) {
    fmt::print("{}\n", mixer.dump());
    return;
  }
  fmt::print("{}: {}\n\n{{ kind = \"{}\", ... }}\n", name, mixers().get(name).about, name);
  for (const auto& option : mixer["options"]) {
    const auto range = option["range"].get<std::string>();
    fmt::print("  {:<22} {} (default {}; {}{})\n", option["name"].get<std::string>(), option["help"].get<std::string>(),
               option["default"].dump(), option["type"].get<std::string>(), range.empty() ? "" : ", " + range);
  }
}

}  // namespace

void add_mixers_command(CLI::App& app) {
  auto json = std::make_shared<bool>(false);
  auto name = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand("mixers", "List the token mixers, or show one's options");
  command->footer("Examples:\n  seqloom mixers\n  seqloom mixers show mamba");
  command->add_flag("--json", *json, "print as JSON");
  CLI::App* show = command->add_subcommand("show", "Show a mixer's options");
  show->add_option("NAME", *name, "the mixer")->required();
  show->add_flag("--json", *json, "print as JSON");
  command->callback([json, name] { name->empty() ? list_mixers(*json) : show_mixer(*name, *json); });
}

}  // namespace seqloom
