#include <filesystem>
#include <memory>

#include "base/error.h"
#include "cli/commands.h"
#include "cli/progress.h"
#include "tasks/language.h"
#include "tasks/sentence.h"

namespace seqloom {
namespace {

namespace fs = std::filesystem;

struct QuantizeArguments {
  std::string checkpoint, out;
  WeightFormat format;
  bool json = false;
};

struct Model {
  Checkpoint checkpoint;
  std::shared_ptr<torch::nn::Module> module;
};

/// A language model, or a sentence encoder where the checkpoint says so.
Model load(const std::string& path) {
  const Config task = open_checkpoint(path).recipe.value("task", Config());
  if (task.is_object() && task.value("kind", Config()) == "sentence_embedding") {
    const SentenceModel model = load_sentence_model(path);
    return {model.checkpoint, model.encoder};
  }
  const LanguageModel model = load_language_model(path);
  return {model.checkpoint, model.decoder};
}

/// The file to write: PATH itself where it is called *.safetensors, else in the folder PATH, which is made.
std::string output_file(const QuantizeArguments& arguments, const std::string& source) {
  fs::path out = arguments.out;
  if (out.extension() != ".safetensors") {
    std::error_code failure;
    fs::create_directories(out, failure);
    if (failure) misuse("--out {}: cannot be made a folder ({}); choose another", arguments.out, failure.message());
    out /= "checkpoint.safetensors";
  }
  if (fs::exists(out) && fs::equivalent(out, source)) {
    misuse("--out {}: is the checkpoint itself, which is kept as it is; choose another", arguments.out);
  }
  return out.string();
}

void quantize(const QuantizeArguments& arguments) {
  if (arguments.format.group > 0 && arguments.format.type != "int8") misuse("--group goes with --format int8");
  auto [checkpoint, model] = load(arguments.checkpoint);
  const std::string source = checkpoint.path;
  if (checkpoint.weights.type == "int8") {
    misuse("{}: its weights are int8 already; give the checkpoint that they were made from", source);
  }
  checkpoint.path = output_file(arguments, source);
  checkpoint.weights = arguments.format;
  checkpoint.recipe.erase("distill");  // the low-rank updates are part of the weights now
  const double error = store_as(*model, arguments.format);
  save_checkpoint(checkpoint, *model, {});
  const auto before = fs::file_size(source), after = fs::file_size(checkpoint.path);
  if (arguments.json) {
    fmt::print("{}\n", Config({{"checkpoint", checkpoint.path},
                               {"format", arguments.format.type},
                               {"group", arguments.format.group},
                               {"bytes_before", before},
                               {"bytes_after", after},
                               {"greatest_relative_error", error}})
                           .dump());
    return;
  }
  fmt::print("{}: {}B, was {}B; a matrix is off by at most {:.3g} of its norm\n", checkpoint.path,
             short_number(static_cast<double>(after)), short_number(static_cast<double>(before)), error);
}

}  // namespace

void add_quantize_command(CLI::App& app) {
  auto arguments = std::make_shared<QuantizeArguments>();
  CLI::App* command =
      app.add_subcommand("quantize", "Write a checkpoint whose matrices take fewer bytes, to be used and not trained");
  command->footer(
      "Examples:\n"
      "  seqloom quantize runs/scripture --format int8 --out runs/scripture-int8\n"
      "  seqloom quantize runs/scripture --format int8 --group 64 --out small.safetensors\n"
      "  seqloom generate runs/scripture-int8 --prompt 'In the beginning'");
  command->add_option("CHECKPOINT", arguments->checkpoint, "a run's folder or checkpoint file")->required();
  command->add_option("--format", arguments->format.type, "of a matrix's entries")
      ->required()
      ->check(CLI::IsMember({"float32", "bfloat16", "int8"}));
  command
      ->add_option("--group", arguments->format.group,
                   "int8: columns that share a scale, in matrices whose width they divide; default: a row has one")
      ->check(CLI::Range(8, 1 << 16));
  command->add_option("--out", arguments->out, "the file to write (*.safetensors), or a folder for it")->required();
  command->add_flag("--json", arguments->json, "print the result as JSON");
  command->callback([arguments] { quantize(*arguments); });
}

}  // namespace seqloom
