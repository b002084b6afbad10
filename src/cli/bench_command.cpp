#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <memory>

#include "base/error.h"
#include "cli/commands.h"
#include "cli/progress.h"
#include "io/tokenizer.h"
#include "models/decoder.h"
#include "train/checkpoint.h"

namespace seqloom {
namespace {

struct BenchArguments {
  std::string model;
  std::vector<std::string> assignments;
  std::vector<int64_t> lengths = {512, 2048, 8192};
  int64_t decode = 64, repeats = 3, threads = 0;
  bool json = false;
};

double seconds_of(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median_seconds(int64_t repeats, const std::function<void()>& work) {
  std::vector<double> times;
  for (int64_t i = 0; i < repeats; ++i) times.push_back(seconds_of(work));
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

/// Lets the kernel forget the peak so far (Linux); 0 where it cannot say.
void reset_peak() {
  std::ofstream("/proc/self/clear_refs") << "5";
}

double memory_mib(const std::string& key) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind(key + ":", 0) == 0) return std::stod(line.substr(key.size() + 1)) / 1024;
  }
  return 0;
}

std::shared_ptr<Decoder> build_model(const BenchArguments& arguments) {
  const bool recipe_file = std::filesystem::path(arguments.model).extension() == ".toml";
  const Config recipe =
      recipe_file ? load_recipe(arguments.model, arguments.assignments) : open_checkpoint(arguments.model).recipe;
  if (!recipe.contains("model")) misuse("{}: the table [model] is missing", arguments.model);
  constexpr int64_t kVocabulary = 256;  // speed is measured on random tokens; a byte vocabulary stands for any
  auto decoder = std::make_shared<Decoder>(kVocabulary, recipe["model"], arguments.model + ": model");
  return decoder;
}

struct Row {
  int64_t length;
  double train = 0, prefill = 0, decode = 0;             // tokens/s
  double train_mib = 0, prefill_mib = 0, state_kib = 0;  // above what was held before
};

Row measure(Decoder& decoder, int64_t length, const BenchArguments& arguments) {
  Row row{length};
  const Tensor ids = torch::randint(decoder.vocabulary(), {1, length}, torch::kInt64);
  const auto step = [&] {
    Pass pass;
    const Tensor logits = decoder.logits(decoder.hidden(ids, pass)).flatten(0, 1);
    torch::nn::functional::cross_entropy(logits, ids.flatten()).backward();
    decoder.zero_grad();
  };
  step();  // warm-up
  reset_peak();
  double before = memory_mib("VmRSS");
  row.train = static_cast<double>(length) / median_seconds(arguments.repeats, step);
  row.train_mib = memory_mib("VmHWM") - before;

  const torch::NoGradGuard no_grad;
  Memory memory;
  constexpr int64_t kChunk = 512;
  reset_peak();
  before = memory_mib("VmRSS");
  row.prefill = static_cast<double>(length) / median_seconds(arguments.repeats, [&] {
                  memory = decoder.empty_memory(1);
                  for (int64_t t = 0; t < length; t += kChunk) {
                    decoder.extend(ids.narrow(1, t, std::min(kChunk, length - t)), memory);
                  }
                });
  row.prefill_mib = memory_mib("VmHWM") - before;
  const Tensor token = ids.narrow(1, 0, 1);
  row.decode = static_cast<double>(arguments.decode) / seconds_of([&] {
                 for (int64_t t = 0; t < arguments.decode; ++t) decoder.logits(decoder.extend(token, memory));
               });
  row.state_kib = static_cast<double>(memory.bytes()) / 1024;
  return row;
}

void print_table(const std::vector<Row>& rows) {
  fmt::print("{:>8} {:>14} {:>14} {:>14} {:>12} {:>12} {:>12}\n", "length", "train tok/s", "prefill tok/s",
             "decode tok/s", "train MiB", "prefill MiB", "state KiB");
  for (const auto& r : rows) {
    fmt::print("{:>8} {:>14} {:>14} {:>14} {:>12.1f} {:>12.1f} {:>12.1f}\n", r.length, short_number(r.train),
               short_number(r.prefill), short_number(r.decode), r.train_mib, r.prefill_mib, r.state_kib);
  }
}

void bench(const BenchArguments& arguments) {
  if (arguments.threads > 0) torch::set_num_threads(static_cast<int>(arguments.threads));
  const auto decoder = build_model(arguments);
  std::vector<Row> rows;
  Config json = Config::array();
  for (const int64_t length : arguments.lengths) {
    rows.push_back(measure(*decoder, length, arguments));
    const Row& r = rows.back();
    json.push_back({{"length", r.length},
                    {"train_tokens_per_second", r.train},
                    {"prefill_tokens_per_second", r.prefill},
                    {"decode_tokens_per_second", r.decode},
                    {"train_peak_mib", r.train_mib},
                    {"prefill_peak_mib", r.prefill_mib},
                    {"state_kib", r.state_kib}});
  }
  if (arguments.json) {
    fmt::print("{}\n", Config({{"model", arguments.model},
                               {"parameters", decoder->parameter_count()},
                               {"threads", torch::get_num_threads()},
                               {"rows", json}})
                           .dump());
    return;
  }
  fmt::print("{}: {} parameters, {} threads, batch 1, float32, median of {}\n", arguments.model,
             short_number(static_cast<double>(decoder->parameter_count())), torch::get_num_threads(),
             arguments.repeats);
  print_table(rows);
}

}  // namespace

void add_bench_command(CLI::App& app) {
  auto arguments = std::make_shared<BenchArguments>();
  CLI::App* command =
      app.add_subcommand("bench", "Measure a model: training, prefill and decoding speed and memory over lengths");
  command->footer(
      "Examples:\n  seqloom bench recipes/scripture.toml --lengths 512,4096,32768\n"
      "  seqloom bench runs/scripture --json");
  command->add_option("MODEL", arguments->model, "a recipe (.toml) or a checkpoint")->required();
  command->add_option("--set", arguments->assignments, "change a key of the recipe");
  command->add_option("--lengths", arguments->lengths, "sequence lengths, comma separated")
      ->delimiter(',')
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24));
  command->add_option("--decode", arguments->decode, "tokens to decode")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20));
  command->add_option("--repeats", arguments->repeats, "runs of which the median counts")->check(CLI::Range(1, 1000));
  command->add_option("--threads", arguments->threads, "threads (default: all)")->check(CLI::Range(1, 1024));
  command->add_flag("--json", arguments->json, "print as JSON");
  command->callback([arguments] { bench(*arguments); });
}

}  // namespace seqloom
