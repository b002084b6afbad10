#include <chrono>
#include <cstdio>
#include <memory>

#include "base/error.h"
#include "cli/commands.h"
#include "decode/session.h"
#include "decode/speculative.h"
#include "decode/stop_strings.h"
#include "tasks/language.h"

namespace seqloom {
namespace {

struct GenerateArguments {
  std::string checkpoint, prompt, save_state, load_state, draft;
  std::vector<std::string> stop;
  int64_t tokens = 200, cache_every = 0, draft_tokens = 4;
  SamplerOptions sampler;
  bool json = false;
};

/// Reads the options' ranges from the sampler's own description, so that they are said once.
void check_sampler(SamplerOptions& options) {
  Fields fields;
  options.describe(fields);
  for (const auto& field : fields.list()) field.set(field.get(), "--" + field.name());
}

Session start_session(const GenerateArguments& arguments, const LanguageModel& model) {
  std::string model_id = fingerprint(model.checkpoint);
  if (arguments.cache_every > 0) {
    model.decoder->cache_every(arguments.cache_every);
    model_id += fmt::format(" cache_every {}", arguments.cache_every);
  }
  Session session(model.decoder, model_id);
  if (!arguments.load_state.empty()) session.load(arguments.load_state);
  std::vector<int64_t> prompt;
  // what the tokenizer puts round a text stands at a stream's beginning, not where it goes on
  const bool begins = arguments.load_state.empty() && !arguments.prompt.empty();
  const auto& tokenizer = *model.tokenizer;
  for (const int32_t id : begins ? tokenizer.encode_framed(arguments.prompt) : tokenizer.encode(arguments.prompt)) {
    prompt.push_back(id);
  }
  if (prompt.empty() && arguments.load_state.empty()) misuse("--prompt is empty; give some text, or --load-state");
  if (!prompt.empty()) session.read(prompt);
  return session;
}

std::shared_ptr<Decoder> load_draft(const GenerateArguments& arguments, const LanguageModel& model) {
  const LanguageModel draft = load_language_model(arguments.draft);
  if (draft.tokenizer->fingerprint() != model.tokenizer->fingerprint()) {
    misuse("--draft {}: its tokenizer ({}, {} tokens) is not that of {} ({}, {} tokens); a draft is tokens",
           arguments.draft, draft.tokenizer->kind(), draft.tokenizer->vocabulary(), arguments.checkpoint,
           model.tokenizer->kind(), model.tokenizer->vocabulary());
  }
  return draft.decoder;
}

/// Makes tokens until `emit` returns false, with a draft model or without; returns how many.
int64_t make_tokens(const GenerateArguments& arguments, const LanguageModel& model, Session& session,
                    const std::function<bool(int64_t)>& emit, SpeculationCounts& counts) {
  if (!arguments.draft.empty()) {
    Speculation speculation(model.decoder, std::move(session.stream()), load_draft(arguments, model),
                            arguments.draft_tokens);
    const int64_t made = speculation.generate(arguments.tokens, arguments.sampler, emit);
    counts = speculation.counts();
    session.stream() = std::move(speculation.stream());
    return made;
  }
  int64_t made = 0;
  for (bool goes_on = true; made < arguments.tokens && goes_on; ++made) goes_on = emit(session.next(arguments.sampler));
  return made;
}

void generate(GenerateArguments& arguments) {
  check_sampler(arguments.sampler);
  const LanguageModel model = load_language_model(arguments.checkpoint);
  Session session = start_session(arguments, model);
  const bool live = !arguments.json;
  if (live) fmt::print("{}", arguments.prompt);

  Utf8Stream characters;
  StopStrings stops(arguments.stop);
  std::string text;
  const auto show = [&](const std::string& piece) {
    text += piece;
    if (!live) return;
    std::fwrite(piece.data(), 1, piece.size(), stdout);
    std::fflush(stdout);
  };
  const auto emit = [&](int64_t token) {
    show(stops.push(characters.push(model.tokenizer->token_bytes(static_cast<int32_t>(token)))));
    return !stops.found();
  };
  SpeculationCounts drafts;
  const int64_t made = make_tokens(arguments, model, session, emit, drafts);
  show(stops.push(characters.finish()));
  show(stops.finish());
  if (live) fmt::print("\n");
  if (!arguments.save_state.empty()) session.save(arguments.save_state);
  if (arguments.json) {
    Config result = {{"prompt", arguments.prompt},
                     {"text", text},
                     {"tokens", made},
                     {"stopped", stops.found()},
                     {"state_bytes", session.bytes()}};
    if (!arguments.draft.empty()) {
      result["draft"] = {{"steps", drafts.rounds},
                         {"drafted", drafts.drafted},
                         {"accepted", drafts.accepted},
                         {"acceptance", drafts.acceptance()}};
    }
    fmt::print("{}\n", result.dump(-1, ' ', false, Config::error_handler_t::replace));
  }
}

}  // namespace

void add_cache_every(CLI::App& command, int64_t& tokens) {
  command
      .add_option("--cache-every", tokens,
                  "keep each layer's memory after so many tokens, begin a new one and read the mean of all (Memory "
                  "Caching after training): for recurrent models beyond the length they were trained on")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40));
}

void add_generate_command(CLI::App& app) {
  auto arguments = std::make_shared<GenerateArguments>();
  CLI::App* command = app.add_subcommand("generate", "Stream a continuation of a prompt, token by token");
  command->footer(
      "Examples:\n"
      "  seqloom generate runs/scripture --prompt 'In the beginning' --tokens 300 --temperature 0.8\n"
      "  seqloom generate runs/scripture --prompt 'And' --save-state s.safetensors\n"
      "  seqloom generate runs/scripture --load-state s.safetensors --tokens 100\n"
      "  seqloom generate runs/large --draft runs/small --prompt 'In the' --json");
  SamplerOptions& sampler = arguments->sampler;
  command->add_option("CHECKPOINT", arguments->checkpoint, "a run's folder or checkpoint file")->required();
  command->add_option("--prompt", arguments->prompt, "the text to continue");
  command->add_option("--tokens", arguments->tokens, "how many tokens to make")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 40));
  command->add_option("--temperature", sampler.temperature, "0: always the likeliest token (default 1)");
  command->add_option("--top-k", sampler.top_k, "draw from the k likeliest tokens");
  command->add_option("--top-p", sampler.top_p, "draw from the likeliest tokens that hold this probability");
  command->add_option("--min-p", sampler.min_p, "drop tokens below this part of the likeliest one's probability");
  command->add_option("--repetition-penalty", sampler.repetition_penalty, "above 1: make recent tokens less likely");
  command->add_option("--seed", sampler.seed, "of the draws: the same seed gives the same text");
  command->add_option("--stop", arguments->stop, "end before this text (again for more)");
  command->add_option("--save-state", arguments->save_state, "write the stream's state to this file at the end");
  command->add_option("--load-state", arguments->load_state, "go on from a saved state");
  command->add_option("--draft", arguments->draft,
                      "a small model with the same tokenizer that drafts tokens for the large one to check: the same "
                      "text, sooner");
  command->add_option("--draft-tokens", arguments->draft_tokens, "how many tokens it drafts at a time")
      ->check(CLI::Range(1, 64));
  add_cache_every(*command, arguments->cache_every);
  command->add_flag("--json", arguments->json, "print the result as JSON instead of streaming it");
  command->callback([arguments] { generate(*arguments); });
}

}  // namespace seqloom
