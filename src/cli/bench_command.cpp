#include <algorithm>
#include <filesystem>
#include <fstream>
#include <memory>

#include "base/error.h"
#include "cli/bench_clock.h"
#include "cli/bench_mixers.h"
#include "cli/commands.h"
#include "cli/progress.h"
#include "decode/stream.h"
#include "io/tokenizer.h"
#include "models/decoder.h"
#include "train/checkpoint.h"
#include "train/token_loss.h"
#include "train/train_step.h"

namespace seqloom {
namespace {

struct BenchArguments {
  std::string model;
  std::vector<std::string> assignments;
  std::vector<int64_t> lengths = {512, 2048, 8192};
  std::vector<std::string> only = {"train", "prefill", "decode"};
  int64_t decode = 64, repeats = 3, threads = 0, batch = 1;
  int64_t vocabulary = 256;  // speed is measured on random tokens; a byte vocabulary stands for any
  bool json = false, stream = false, layers = false, ragged = false;
  WeightFormat weights;  // of a recipe's model; a checkpoint says its own
  MixerBench mixers;

  bool measures(const std::string& what) const { return std::find(only.begin(), only.end(), what) != only.end(); }
};

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

/// What is measured: a model with random or trained weights, and how its recipe trains.
struct Subject {
  std::shared_ptr<Decoder> decoder;
  TrainOptions train;
  bool trainable;  // not where the matrices are kept in fewer bytes
};

Subject build_subject(const BenchArguments& arguments) {
  const bool recipe_file = std::filesystem::path(arguments.model).extension() == ".toml";
  Checkpoint checkpoint;
  if (recipe_file) {
    checkpoint.recipe = load_recipe(arguments.model, arguments.assignments);
    checkpoint.weights = arguments.weights;
  } else {
    checkpoint = open_checkpoint(arguments.model);
  }
  const Config& recipe = checkpoint.recipe;
  if (!recipe.contains("model")) misuse("{}: the table [model] is missing", arguments.model);
  Subject subject{std::make_shared<Decoder>(arguments.vocabulary, recipe["model"], arguments.model + ": model"),
                  read_options<TrainOptions>(recipe.value("train", Config::object()), arguments.model + ": train"),
                  checkpoint.weights == WeightFormat()};
  if (!subject.trainable) subject.decoder->store_as(checkpoint.weights);
  return subject;
}

struct Row {
  int64_t length;
  double train = 0, prefill = 0, decode = 0;             // tokens/s
  double train_mib = 0, prefill_mib = 0, state_kib = 0;  // above what was held before
};

/// A step as the trainer takes it: loss, gradients, AdamW.
void measure_training(const Subject& subject, const Tensor& ids, int64_t repeats, Row& row) {
  Decoder& decoder = *subject.decoder;
  const auto optimizer = make_optimizer(decoder.parameters(), decoder.without_weight_decay(), subject.train);
  decoder.set_checkpointing(subject.train.checkpoint_activations);
  const auto step = [&] {
    Tensor loss;
    {
      const Autocast autocast(subject.train.precision == "bfloat16");
      loss = token_loss(decoder, ids, ids);
    }
    loss.backward();
    update_parameters(*optimizer);
    optimizer->zero_grad();
  };
  step();  // warm-up
  reset_peak();
  const double before = memory_mib("VmRSS");
  row.train = static_cast<double>(ids.numel()) / median_seconds(repeats, step);
  row.train_mib = memory_mib("VmHWM") - before;
}

Memory read_in_chunks(Decoder& decoder, const Tensor& ids) {
  constexpr int64_t kChunk = 512;
  Memory memory = decoder.empty_memory(ids.size(0));
  for (int64_t t = 0; t < ids.size(1); t += kChunk) {
    decoder.extend(ids.narrow(1, t, std::min(kChunk, ids.size(1) - t)), memory);
  }
  return memory;
}

/// Seconds of `count` steps of all rows of a memory, as streams of their own.
double decoding_seconds(Decoder& decoder, const Memory& memory, const Tensor& ids, int64_t count) {
  std::vector<Stream> streams(static_cast<size_t>(ids.size(0)));
  std::vector<Stream*> all;
  std::vector<int64_t> tokens;
  for (int64_t row = 0; row < ids.size(0); ++row) {
    Stream& stream = streams[static_cast<size_t>(row)];
    stream.memory = memory.select_rows(torch::tensor({row}));
    all.push_back(&stream);
    tokens.push_back(ids[row][0].item<int64_t>());
  }
  read_one(decoder, all, tokens);  // warm-up
  return seconds_of([&] {
    for (int64_t t = 0; t < count; ++t) read_one(decoder, all, tokens);
  });
}

Row measure(const Subject& subject, int64_t length, const BenchArguments& arguments) {
  Row row{length};
  Decoder& decoder = *subject.decoder;
  const Tensor ids = torch::randint(decoder.vocabulary(), {arguments.batch, length}, torch::kInt64);
  if (subject.trainable && arguments.measures("train")) measure_training(subject, ids, arguments.repeats, row);
  if (!arguments.measures("prefill") && !arguments.measures("decode")) return row;

  const torch::NoGradGuard no_grad;
  read_in_chunks(decoder, ids.narrow(1, 0, std::min<int64_t>(length, 512)));  // warm-up
  Memory memory;
  reset_peak();
  const double before = memory_mib("VmRSS");
  row.prefill = static_cast<double>(ids.numel()) / median_seconds(arguments.measures("prefill") ? arguments.repeats : 1,
                                                                  [&] { memory = read_in_chunks(decoder, ids); });
  row.prefill_mib = memory_mib("VmHWM") - before;
  row.state_kib = static_cast<double>(memory.bytes()) / 1024;
  if (!arguments.measures("decode")) return row;
  row.decode = static_cast<double>(arguments.batch * arguments.decode) /
               decoding_seconds(decoder, memory, ids, arguments.decode);
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
  if (!arguments.mixers.chart.empty() && !arguments.layers) misuse("--chart draws what --layers measures: give both");
  if (arguments.stream) return bench_stream(arguments.mixers);
  if (arguments.layers) return bench_layers(arguments.mixers);
  if (arguments.ragged) return bench_ragged(arguments.mixers);
  if (arguments.model.empty())
    misuse("bench: name a recipe or a checkpoint, or ask for --stream, --layers or --ragged");
  if (arguments.threads > 0) torch::set_num_threads(static_cast<int>(arguments.threads));
  const Subject subject = build_subject(arguments);
  std::vector<Row> rows;
  Config json = Config::array();
  for (const int64_t length : arguments.lengths) {
    rows.push_back(measure(subject, length, arguments));
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
                               {"parameters", subject.decoder->parameter_count()},
                               {"threads", torch::get_num_threads()},
                               {"batch", arguments.batch},
                               {"rows", json}})
                           .dump());
    return;
  }
  fmt::print("{}: {} parameters, {} threads, batch {}, median of {}\n", arguments.model,
             short_number(static_cast<double>(subject.decoder->parameter_count())), torch::get_num_threads(),
             arguments.batch, arguments.repeats);
  print_table(rows);
}

}  // namespace

void add_bench_command(CLI::App& app) {
  auto arguments = std::make_shared<BenchArguments>();
  CLI::App* command =
      app.add_subcommand("bench", "Measure a model: training, prefill and decoding speed and memory over lengths");
  command->footer(
      "Examples:\n  seqloom bench recipes/scripture.toml --lengths 512,4096,32768\n"
      "  seqloom bench recipes/scripture.toml --lengths 2000,200000 --only prefill\n"
      "  seqloom bench runs/scripture --json\n"
      "  seqloom bench --stream --mixers mamba,attention\n"
      "  seqloom bench --layers --lengths 1024,4096\n"
      "  seqloom bench --layers --chart docs/img/training_steps.svg\n"
      "  seqloom bench --ragged --lengths 512\n"
      "With --threads 1 times are CPU seconds of the process, else of the wall.");
  command->add_option("MODEL", arguments->model, "a recipe (.toml) or a checkpoint");
  command->add_option("--set", arguments->assignments, "change a key of the recipe");
  command->add_option("--lengths", arguments->lengths, "sequence lengths, comma separated")
      ->delimiter(',')
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24));
  command->add_option("--decode", arguments->decode, "tokens to decode")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20));
  command->add_option("--batch", arguments->batch, "rows that are read at once; in decoding, streams")
      ->check(CLI::Range(1, 1 << 16));
  command->add_option("--vocabulary", arguments->vocabulary, "tokens that the model knows (default: bytes)")
      ->check(CLI::Range(1, 1 << 24));
  command->add_option("--weights", arguments->weights.type, "with a recipe: in what the matrices are kept")
      ->check(CLI::IsMember({"float32", "bfloat16", "int8"}));
  command->add_option("--group", arguments->weights.group, "with --weights int8: columns that share a scale (0: a row)")
      ->check(CLI::Range(0, 1 << 16));
  command->add_option("--repeats", arguments->repeats, "runs of which the median counts")->check(CLI::Range(1, 1000));
  command->add_option("--threads", arguments->threads, "threads (default: all)")->check(CLI::Range(1, 1024));
  command->add_option("--only", arguments->only, "measure only some of train, prefill, decode")
      ->delimiter(',')
      ->check(CLI::IsMember({"train", "prefill", "decode"}));
  command->add_flag("--json", arguments->json, "print as JSON");
  command->add_flag("--stream", arguments->stream,
                    "time one streamed token of each mixer at several positions instead");
  command->add_flag("--layers", arguments->layers, "time a training step of each mixer alone over lengths instead");
  command->add_flag("--ragged", arguments->ragged,
                    "time attention and mamba on rows of different lengths, padded against packed, instead");
  command
      ->add_option("--mixers", arguments->mixers.kinds,
                   "with --stream, --layers and --ragged: these mixers (default: all; --ragged: attention, mamba)")
      ->delimiter(',');
  command->add_option("--chart", arguments->mixers.chart, "with --layers: also draw the rates into this SVG file");
  command->add_option("--positions", arguments->mixers.positions, "with --stream: tokens read before")
      ->delimiter(',')
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24));
  command->callback([arguments, command] {
    arguments->mixers.json = arguments->json;
    arguments->mixers.repeats = arguments->repeats;
    if (arguments->ragged) arguments->mixers.lengths = {128, 512, 2048};
    if (command->count("--lengths") > 0) arguments->mixers.lengths = arguments->lengths;
    bench(*arguments);
  });
}

}  // namespace seqloom
