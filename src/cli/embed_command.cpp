#include <fstream>
#include <iostream>
#include <memory>

#include "base/error.h"
#include "cli/commands.h"
#include "cli/progress.h"
#include "tasks/sentence.h"

namespace seqloom {
namespace {

struct EmbedArguments {
  std::string checkpoint, texts, out;
};

std::vector<std::string> read_lines(const std::string& path) {
  std::ifstream file;
  if (path != "-") {
    file.open(path, std::ios::binary);
    if (!file) fail("{}: cannot be read", path);
  }
  std::istream& input = path == "-" ? std::cin : file;
  std::vector<std::string> lines;
  for (std::string line; std::getline(input, line);) {
    if (line.ends_with('\r')) line.pop_back();
    lines.push_back(std::move(line));
  }
  if (lines.empty()) fail("{}: there is no text in it; expected one a line", path);
  return lines;
}

void print_lines(const Tensor& vectors) {
  std::string line;
  for (int64_t i = 0; i < vectors.size(0); ++i) {
    const auto* row = vectors[i].const_data_ptr<float>();
    line = "[";
    for (int64_t d = 0; d < vectors.size(1); ++d)
      fmt::format_to(std::back_inserter(line), "{}{}", d > 0 ? "," : "", row[d]);
    fmt::print("{}]\n", line);
  }
}

void embed(const EmbedArguments& arguments) {
  const SentenceModel model = load_sentence_model(arguments.checkpoint);
  const auto lines = read_lines(arguments.texts);
  Progress progress("embedding", static_cast<int64_t>(lines.size()));
  const Tensor vectors = model.embed(lines, [&](int64_t done) { progress.update(done, "texts"); }).contiguous();
  progress.finish(fmt::format("{} texts", lines.size()));
  if (arguments.out.empty()) return print_lines(vectors);
  save_safetensors(arguments.out, {{"embeddings", vectors}}, {});
}

}  // namespace

void add_embed_command(CLI::App& app) {
  auto arguments = std::make_shared<EmbedArguments>();
  CLI::App* command = app.add_subcommand("embed", "Make a vector of each line of text");
  command->footer(
      "Examples:\n  seqloom embed runs/minilm texts.txt > vectors.jsonl\n"
      "  sort -u names | seqloom embed runs/minilm - --out vectors.safetensors");
  command->add_option("CHECKPOINT", arguments->checkpoint, "a sentence encoder: a run's folder or checkpoint file")
      ->required();
  command->add_option("FILE", arguments->texts, "one text a line; -: standard input")->required();
  command->add_option(
      "--out", arguments->out,
      "write the tensor 'embeddings' [lines, width] to this safetensors file (default: print a JSON list "
      "a line)");
  command->callback([arguments] { embed(*arguments); });
}

}  // namespace seqloom
