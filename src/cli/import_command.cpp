#include "huggingface/import.h"

#include <memory>

#include "base/error.h"
#include "cli/commands.h"
#include "cli/progress.h"
#include "huggingface/export.h"

namespace seqloom {
namespace {

void warn(const std::string& what, const std::vector<std::string>& names) {
  if (!names.empty()) fmt::print(stderr, "seqloom: warning: {}: {}\n", what, fmt::join(names, ", "));
}

void import_folder(const huggingface::ImportRequest& request, bool json) {
  const auto report = huggingface::import_checkpoint(request);
  warn("tensors that the model has no place for", report.unused);
  warn("keys of config.json that seqloom does not know", report.unknown);
  if (json) {
    fmt::print("{}\n", Config({{"family", report.family},
                               {"parameters", report.parameters},
                               {"tokenizer", report.tokenizer},
                               {"vocabulary", report.vocabulary},
                               {"unused_tensors", report.unused},
                               {"unknown_keys", report.unknown}})
                           .dump(-1, ' ', false, Config::error_handler_t::replace));
  } else {
    fmt::print("{}: {}, {} parameters from {} tensors in {} file{}, tokenizer {} ({} tokens)\n", request.out,
               report.family, short_number(static_cast<double>(report.parameters)), report.tensors, report.files,
               report.files == 1 ? "" : "s", report.tokenizer, report.vocabulary);
  }
}

std::string known_families() {
  std::string text = "Families:\n";
  for (const auto& name : huggingface::families().names()) {
    text += fmt::format("  {:<12} {}\n", name, huggingface::families().get(name).about);
  }
  return text;
}

}  // namespace

void add_import_command(CLI::App& app) {
  auto request = std::make_shared<huggingface::ImportRequest>();
  auto json = std::make_shared<bool>(false);
  CLI::App* command = app.add_subcommand("import", "Make a checkpoint of a model in Hugging Face's layout");
  command->footer("Example:\n  seqloom import gpt2/ --out runs/gpt2\n\n" + known_families());
  command->add_option("DIR", request->folder, "holds config.json, model.safetensors or its shards, tokenizer.json")
      ->required();
  command->add_option("--out", request->out, "the run's folder to make")->required();
  command->add_option("--tokenizer", request->tokenizer, "a tokenizer.json, or bytes (default: the folder's own)");
  command->add_flag("--json", *json, "print the result as JSON");
  command->callback([request, json] { import_folder(*request, *json); });
}

void add_export_command(CLI::App& app) {
  struct Arguments {
    std::string run, out, family;
  };
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand("export", "Write a checkpoint in Hugging Face's layout");
  command->footer("Example:\n  seqloom export runs/gpt2 --out gpt2/\n\n" + known_families());
  command->add_option("CHECKPOINT", arguments->run, "a run's folder or checkpoint file")->required();
  command->add_option("--out", arguments->out, "the folder to make")->required();
  command->add_option("--family", arguments->family, "whose layout (default: the first that describes the model)");
  command->callback([arguments] {
    fmt::print("{}: {}\n", arguments->out,
               huggingface::export_checkpoint(arguments->run, arguments->out, arguments->family));
  });
}

}  // namespace seqloom
