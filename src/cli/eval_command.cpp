#include <memory>

#include "base/error.h"
#include "cli/commands.h"
#include "cli/progress.h"
#include "tasks/language.h"

namespace seqloom {
namespace {

struct EvalArguments {
  std::string checkpoint, data, logits;
  int64_t context = 0, tokens = 0, cache_every = 0;
  bool json = false;
};

void evaluate(const EvalArguments& arguments) {
  const LanguageModel model = load_language_model(arguments.checkpoint);
  if (arguments.cache_every > 0) model.decoder->cache_every(arguments.cache_every);
  const TokenFile text(arguments.data, *model.tokenizer, arguments.data + ".tokens");
  const int64_t end = arguments.tokens > 0 ? std::min(text.size(), arguments.tokens + 1) : text.size();
  const int64_t context = arguments.context > 0 ? arguments.context : model.options.context;
  Progress progress("evaluating", end - 1);
  std::vector<Tensor> logits;
  const auto watch = [&](const Tensor& row) {
    if (!arguments.logits.empty()) logits.push_back(row);
  };
  const TextScore score = score_text(
      *model.decoder, *model.tokenizer, text, 0, end, context, [&](int64_t done) { progress.update(done, "tokens"); },
      watch);
  if (!arguments.logits.empty()) save_safetensors(arguments.logits, {{"logits", torch::cat(logits)}}, {});
  progress.finish(fmt::format("{} tokens", score.tokens));
  if (arguments.json) {
    fmt::print("{}\n", Config({{"bits_per_byte", score.bits_per_byte()},
                               {"perplexity", score.perplexity()},
                               {"tokens", score.tokens},
                               {"bytes", score.bytes}})
                           .dump());
  } else {
    fmt::print("{:.4f} bits per byte, perplexity {:.4f} a token ({} tokens, context {})\n", score.bits_per_byte(),
               score.perplexity(), score.tokens, context);
  }
}

}  // namespace

void add_eval_command(CLI::App& app) {
  auto arguments = std::make_shared<EvalArguments>();
  CLI::App* command = app.add_subcommand("eval", "Measure how well a checkpoint predicts a text");
  command->footer(
      "Examples:\n  seqloom eval runs/scripture --data some.txt --json\n"
      "  seqloom eval runs/gla --data some.txt --context 4096 --cache-every 512");
  command->add_option("CHECKPOINT", arguments->checkpoint, "a run's folder or checkpoint file")->required();
  command->add_option("--data", arguments->data, "the text file")->required();
  command->add_option("--context", arguments->context, "tokens read at once (default: as trained)")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24));
  command->add_option("--tokens", arguments->tokens, "read at most this many tokens")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 62));
  command->add_option("--logits", arguments->logits,
                      "write the logits of every token's successor to this safetensors file, 'logits' [tokens, "
                      "vocabulary]: to compare models or versions of one");
  add_cache_every(*command, arguments->cache_every);
  command->add_flag("--json", arguments->json, "print the result as JSON");
  command->callback([arguments] { evaluate(*arguments); });
}

}  // namespace seqloom
