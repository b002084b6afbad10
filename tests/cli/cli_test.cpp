// The seqloom binary as a user meets it: what it prints, how it ends, what it leaves behind.
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "support/process.h"

namespace seqloom {
namespace {

using nlohmann::json;

class Cli : public InTemporaryFolder {
 protected:
  void SetUp() override {
    InTemporaryFolder::SetUp();
    std::filesystem::copy_file(std::filesystem::path(SEQLOOM_SOURCE_DIR) / "LICENSE", folder / "text.txt");
    write_text(folder / "recipe.toml", R"([task]
kind = "language"
data = ")" + path("text.txt") + R"("
context = 32
eval_tokens = 256

[model]
width = 16
layers = [
  { mixer = { kind = "mamba", state = 4 } },
  { mixer = { kind = "attention", heads = 2, window = 8, position = "rope" }, channel = { kind = "swiglu" } },
]

[train]
steps = 6
batch = 2
)");
  }

  std::string recipe() const { return path("recipe.toml"); }
  std::string run_folder() const { return path("run"); }
  Outcome train(const std::string& more = "") {
    return seqloom("train " + recipe() + " --out " + run_folder() + " " + more);
  }

  /// Expects one clear line on standard error that holds `part`, and the exit status.
  static void expect_error(const Outcome& outcome, int status, const std::string& part) {
    EXPECT_EQ(outcome.status, status) << outcome.err;
    EXPECT_NE(outcome.err.find(part), std::string::npos) << "got: " << outcome.err << "\nwanted: " << part;
    EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
    EXPECT_EQ(outcome.err.rfind("seqloom: ", 0), 0U) << outcome.err;
  }
};

TEST_F(Cli, TrainsEvaluatesAndGenerates) {
  const Outcome trained = train("--json");
  ASSERT_EQ(trained.status, 0) << trained.err;
  const json result = json::parse(trained.out);
  EXPECT_EQ(result["step"], 6);
  EXPECT_GT(result["metrics"]["bits_per_byte"].get<double>(), 0);

  const Outcome evaluated = seqloom("eval " + run_folder() + " --data " + path("text.txt") + " --tokens 512 --json");
  ASSERT_EQ(evaluated.status, 0) << evaluated.err;
  EXPECT_EQ(json::parse(evaluated.out)["tokens"], 512);

  const std::string prompt = "generate " + run_folder() + " --prompt 'Licensed under ' --tokens 20 --seed 5 ";
  const Outcome first = seqloom(prompt), again = seqloom(prompt);
  ASSERT_EQ(first.status, 0) << first.err;
  EXPECT_EQ(first.out.rfind("Licensed under ", 0), 0U);
  EXPECT_EQ(first.out, again.out) << "the same seed must give the same text";
  EXPECT_NE(seqloom(prompt + "--seed 6").out, first.out);
}

TEST_F(Cli, QuantizesWhatIsUsedUnchanged) {
  ASSERT_EQ(train("--set train.steps=60 --set model.width=32").status, 0);
  const std::string source = read_text(folder / "run/checkpoint.safetensors");
  const std::string eval = " --data " + path("text.txt") + " --tokens 512 --json";
  const double bits = json::parse(seqloom("eval " + run_folder() + eval).out)["bits_per_byte"];
  for (const auto& [format, distance] :
       std::vector<std::pair<std::string, double>>{{"bfloat16", 0.02}, {"int8", 0.03}, {"int8 --group 16", 0.02}}) {
    const std::string quantize = "quantize " + run_folder() + " --format " + format + " --out " + path("small");
    const Outcome made = seqloom(quantize + " --json");
    ASSERT_EQ(made.status, 0) << made.err;
    const json result = json::parse(made.out);
    EXPECT_LT(result["bytes_after"].get<int64_t>(), result["bytes_before"].get<int64_t>() / 4);  // no optimiser either
    EXPECT_LT(result["greatest_relative_error"].get<double>(), 0.02);
    EXPECT_EQ(read_text(folder / "run/checkpoint.safetensors"), source) << "the source was touched";
    const double now = json::parse(seqloom("eval " + path("small") + eval).out)["bits_per_byte"];
    EXPECT_NEAR(now, bits, distance) << format;
    EXPECT_EQ(seqloom("generate " + path("small") + " --prompt Lic --tokens 5").status, 0);
    EXPECT_EQ(seqloom("bench " + path("small") + " --lengths 8 --decode 2 --repeats 1 --json").status, 0);
  }
  expect_error(seqloom("quantize " + path("small") + " --format int8 --out " + path("again")), 2, "int8 already");
  expect_error(seqloom("quantize " + run_folder() + " --format int8 --out " + run_folder()), 2,
               "is the checkpoint itself");
  expect_error(seqloom("quantize " + run_folder() + " --format bfloat16 --group 64 --out " + path("b")), 2,
               "--group goes with");
  expect_error(
      seqloom("train " + recipe() + " --set train.steps=60 --set model.width=32 --resume --out " + path("small")), 2,
      "made for use and not for training");
}

TEST_F(Cli, MetricsAreJsonLines) {
  ASSERT_EQ(train("--set train.eval_every=3").status, 0);
  std::ifstream lines(run_folder() + "/metrics.jsonl");
  int steps = 0, evaluations = 0;
  for (std::string line; std::getline(lines, line);) {
    const json entry = json::parse(line);
    steps += entry.contains("loss");
    evaluations += entry.contains("eval.bits_per_byte");
  }
  EXPECT_EQ(steps, 6);
  EXPECT_EQ(evaluations, 2);
}

TEST_F(Cli, ASavedStateGoesOnAsIfNothingHadHappened) {
  ASSERT_EQ(train().status, 0);
  for (const std::string sampling : {"--temperature 0", "--temperature 0.9 --seed 3 --repetition-penalty 1.3"}) {
    const std::string command = "generate " + run_folder() + " " + sampling + " --json ";
    const json whole = json::parse(seqloom(command + "--prompt 'the work ' --tokens 40").out);
    const json first =
        json::parse(seqloom(command + "--prompt 'the work ' --tokens 15 --save-state " + path("s.safetensors")).out);
    const json rest = json::parse(seqloom(command + "--tokens 25 --load-state " + path("s.safetensors")).out);
    EXPECT_EQ(first["text"].get<std::string>() + rest["text"].get<std::string>(), whole["text"].get<std::string>())
        << sampling;
  }
  const Outcome shown = seqloom("inspect " + path("s.safetensors"));
  EXPECT_EQ(shown.status, 0);
  EXPECT_NE(shown.out.find("seqloom-memory-1"), std::string::npos);
  EXPECT_NE(shown.out.find("model.layers.0.ssm"), std::string::npos);
}

TEST_F(Cli, ADraftModelGivesTheSameText) {
  ASSERT_EQ(train().status, 0);
  for (const std::string sampling : {"--temperature 0", "--temperature 0.9 --seed 3 --stop e"}) {
    const std::string command =
        "generate " + run_folder() + " " + sampling + " --json --prompt 'the work ' --tokens 41 ";
    const json plain = json::parse(seqloom(command).out);
    const json drafted = json::parse(seqloom(command + "--draft " + run_folder() + " --draft-tokens 3").out);
    EXPECT_EQ(drafted["text"], plain["text"]);
    EXPECT_EQ(drafted["tokens"], plain["tokens"]);
    EXPECT_FALSE(plain.contains("draft"));
    if (!plain["stopped"].get<bool>()) {
      EXPECT_EQ(drafted["draft"]["acceptance"], 1) << "it is its own draft";
    }
  }
  expect_error(seqloom("generate " + run_folder() + " --prompt x --draft " + path("nowhere")), 1, "nowhere");
}

TEST_F(Cli, CacheEveryReadsOnWithATrainedRecurrentModel) {
  const std::string recurrent = "--set model.layers.1.mixer='{kind = \"gla\", heads = 2}' ";
  ASSERT_EQ(train(recurrent).status, 0);
  const std::string command = "generate " + run_folder() + " --temperature 0 --json --prompt 'the work ' --tokens 40 ";
  const std::string plain = seqloom(command).out;
  EXPECT_EQ(json::parse(seqloom(command + "--cache-every 1000").out)["text"], json::parse(plain)["text"]);
  const Outcome cached = seqloom(command + "--cache-every 7 --save-state " + path("s.safetensors"));
  ASSERT_EQ(cached.status, 0) << cached.err;
  EXPECT_GT(json::parse(cached.out)["state_bytes"], json::parse(plain)["state_bytes"]) << "it keeps seven memories";
  expect_error(seqloom("generate " + run_folder() + " --cache-every 8 --load-state " + path("s.safetensors")), 1,
               "belongs to another model");

  const std::string evaluation = "eval " + run_folder() + " --data " + path("text.txt") + " --context 64 --json ";
  const auto bits = [&](const std::string& more) {
    return json::parse(seqloom(evaluation + more).out)["bits_per_byte"].get<double>();
  };
  EXPECT_NEAR(bits("--cache-every 64"), bits(""), 1e-5);
  EXPECT_NE(bits("--cache-every 16"), bits(""));
}

TEST_F(Cli, CacheEveryRefusesAttention) {
  ASSERT_EQ(train().status, 0);
  expect_error(seqloom("generate " + run_folder() + " --prompt x --cache-every 8"), 2,
               "layer 2: its memory grows with the tokens");
}

TEST_F(Cli, StopStringsEndTheText) {
  ASSERT_EQ(train().status, 0);
  const std::string command = "generate " + run_folder() + " --prompt 'a' --tokens 200 --seed 3 --json ";
  const auto whole = json::parse(seqloom(command).out)["text"].get<std::string>();
  size_t at = 4;  // a letter: an untrained model also makes halves of characters
  while (at < whole.size() && !(whole[at] >= 'a' && whole[at] <= 'z')) ++at;
  ASSERT_LT(at, whole.size());
  const std::string stop = whole.substr(at, 1);
  const json cut = json::parse(seqloom(command + "--stop '" + stop + "'").out);
  EXPECT_TRUE(cut["stopped"].get<bool>());
  EXPECT_EQ(cut["text"], whole.substr(0, whole.find(stop)));
}

TEST_F(Cli, AStateOfAnotherModelIsRefused) {
  ASSERT_EQ(train().status, 0);
  ASSERT_EQ(seqloom("generate " + run_folder() + " --prompt x --tokens 2 --save-state " + path("s.safetensors")).status,
            0);
  ASSERT_EQ(seqloom("train " + recipe() + " --set model.width=24 --out " + path("other")).status, 0);
  expect_error(seqloom("generate " + path("other") + " --load-state " + path("s.safetensors")), 1,
               "belongs to another model");
}

TEST_F(Cli, RecipeErrorsNameFileKeyValueAndExpectation) {
  expect_error(train("--set train.stpes=3"), 2, "train.stpes: there is no such key, did you mean 'steps'?");
  expect_error(train("--set train.steps=many"), 2, "train.steps = \"many\": expected an integer");
  expect_error(train("--set train.steps=0"), 2, "train.steps = 0: expected a value >= 1");
  expect_error(train("--set model.layers.0.mixer.kind=mambo"), 2, "did you mean 'mamba'?");
  expect_error(train("--set model.layers.1.mixer.heads=3"), 2,
               "model.layers.1.mixer: heads = 3 does not divide the width 16");
  expect_error(train("--set model.layers.7.mixer.heads=3"), 2, "is not an element of a list of 2");
  expect_error(train("--set task.kind=poetry"), 2, "there is no such task");
  expect_error(train("--set extra.key=1"), 2, "there is no such key 'extra'");
  expect_error(train("--set nonsense"), 2, "expected key=value");
  expect_error(seqloom("train " + path("none.toml")), 1, "none.toml: cannot be opened: No such file");
  write_text(folder / "broken.toml", "[task\nkind = 1\n");
  expect_error(seqloom("train " + path("broken.toml")), 1, "broken.toml:1:");
}

TEST_F(Cli, BadInputsGiveOneLineAndNoHalfWrittenFile) {
  expect_error(train("--set task.data=" + path("missing.txt")), 1, "missing.txt: cannot be opened");
  write_text(folder / "empty.txt", "");
  expect_error(train("--set task.data=" + path("empty.txt")), 1, "empty.txt: is empty");
  write_text(folder / "short.txt", "tiny");
  expect_error(train("--set task.data=" + path("short.txt")), 1, "too few");
  write_text(folder / "tokenizer.json",
             "{\"model\": {\"type\": \"BPE\", \"vocab\": {\"\xff\xfe\": 0}, \"merges\": []}}");
  expect_error(train("--set task.tokenizer=" + path("tokenizer.json")), 1, "tokenizer.json");
  EXPECT_FALSE(std::filesystem::exists(run_folder() + "/checkpoint.safetensors"));
}

TEST_F(Cli, DamagedCheckpointsAreRefused) {
  ASSERT_EQ(train().status, 0);
  const std::string good = read_text(run_folder() + "/checkpoint.safetensors");
  const std::string generate = " --prompt x --tokens 1";
  write_text(folder / "cut.safetensors", good.substr(0, good.size() / 2));
  expect_error(seqloom("generate " + path("cut.safetensors") + generate), 1, "truncated");
  write_text(folder / "tiny.safetensors", "abc");
  expect_error(seqloom("generate " + path("tiny.safetensors") + generate), 1, "too few");
  write_text(folder / "text.safetensors", std::string(100, 'x'));
  expect_error(seqloom("generate " + path("text.safetensors") + generate), 1, "over the limit");
  expect_error(seqloom("generate " + path("nowhere") + generate), 1, "nowhere: cannot be opened");
  // the same tensors under a recipe of another width
  std::string lying = good;
  const size_t at = lying.find("\\\"width\\\":16");
  ASSERT_NE(at, std::string::npos);
  lying.replace(at, 12, "\\\"width\\\":24");
  write_text(folder / "lying.safetensors", lying);
  expect_error(seqloom("generate " + path("lying.safetensors") + generate), 1, "does not fit the model");
}

TEST_F(Cli, ALossThatIsNotFiniteStopsTheRun) {
  const Outcome outcome = train("--set train.learning_rate=1e30 --set train.clip=0 --set train.steps=50");
  EXPECT_EQ(outcome.status, 1);
  EXPECT_NE(outcome.err.find("\nseqloom: the loss is "), std::string::npos) << outcome.err;
  EXPECT_NE(outcome.err.find("lower train.learning_rate"), std::string::npos) << outcome.err;
}

TEST_F(Cli, EmptyPromptsAndBadSamplingAreRefused) {
  ASSERT_EQ(train().status, 0);
  const std::string generate = "generate " + run_folder();
  expect_error(seqloom(generate), 2, "--prompt is empty");
  expect_error(seqloom(generate + " --prompt x --top-p 0"), 2, "top_p");
  expect_error(seqloom(generate + " --prompt x --temperature -1"), 2, "temperature");
  EXPECT_EQ(seqloom("train").status, 2);
  EXPECT_EQ(seqloom("unknown").status, 2);
  EXPECT_EQ(seqloom("generate " + run_folder() + " --tokens x").status, 2);
}

TEST_F(Cli, ARunIsNotOverwrittenByAccident) {
  ASSERT_EQ(train().status, 0);
  expect_error(train(), 2, "already holds a run; go on with --resume");
  EXPECT_EQ(train("--resume").status, 0);
  EXPECT_EQ(train("--overwrite --set train.steps=2").status, 0);
  expect_error(train("--resume"), 2, "was trained by another recipe");
}

TEST_F(Cli, EveryCommandHasHelpWithExamples) {
  EXPECT_EQ(seqloom("--help").status, 0);
  for (const std::string command : {"train", "eval", "generate", "study", "bench", "mixers", "inspect", "serve"}) {
    const Outcome help = seqloom(command + " --help");
    EXPECT_EQ(help.status, 0) << command;
    EXPECT_NE(help.out.find("Example"), std::string::npos) << command;
  }
}

TEST_F(Cli, MixersAreListedAndShown) {
  const json all = json::parse(seqloom("mixers --json").out);
  std::vector<std::string> names;
  for (const auto& mixer : all) names.push_back(mixer["name"]);
  for (const char* name : {"attention", "mamba", "linear_attention", "gla", "deltanet", "gated_deltanet"}) {
    EXPECT_NE(std::find(names.begin(), names.end(), name), names.end()) << name;
  }
  EXPECT_NE(seqloom("mixers show gla").out.find("gate_logit_normalizer"), std::string::npos);
  expect_error(seqloom("mixers show glo"), 2, "did you mean 'gla'?");
}

TEST_F(Cli, BenchMeasuresARecipe) {
  const Outcome outcome = seqloom("bench " + recipe() + " --lengths 16,64 --decode 4 --repeats 1 --json");
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  const json rows = json::parse(outcome.out)["rows"];
  ASSERT_EQ(rows.size(), 2U);
  EXPECT_GT(rows[1]["train_tokens_per_second"].get<double>(), 0);
  EXPECT_EQ(rows[0]["state_kib"], rows[1]["state_kib"]) << "this model's state has a fixed size";
  const Outcome prefill = seqloom("bench " + recipe() + " --lengths 16 --only prefill --repeats 1 --json");
  EXPECT_EQ(json::parse(prefill.out)["rows"][0]["train_tokens_per_second"], 0) << prefill.err;
}

TEST_F(Cli, BenchReadsRowsTogetherAndTrainsAsTheRecipeSays) {
  const std::string options = " --batch 3 --lengths 16 --decode 2 --repeats 1 --json --threads 1";
  const Outcome one = seqloom("bench " + recipe() + " --lengths 16 --decode 2 --repeats 1 --json");
  const Outcome three = seqloom("bench " + recipe() + options + " --set train.precision=bfloat16");
  ASSERT_EQ(three.status, 0) << three.err;
  const json result = json::parse(three.out);
  EXPECT_EQ(result["batch"], 3);
  EXPECT_GT(result["rows"][0]["train_tokens_per_second"].get<double>(), 0);
  EXPECT_EQ(result["rows"][0]["state_kib"].get<double>(),
            3 * json::parse(one.out)["rows"][0]["state_kib"].get<double>());
  expect_error(seqloom("bench " + recipe() + options + " --set train.precision=float8"), 2, "train.precision");
}

TEST_F(Cli, BenchComparesPaddedAndPackedRows) {
  const Outcome outcome = seqloom("bench --ragged --mixers attention,gla --lengths 20 --repeats 1 --json");
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  const json rows = json::parse(outcome.out);
  ASSERT_EQ(rows.size(), 4U) << "two mixers, forward and with gradients";
  for (const auto& row : rows) {
    EXPECT_GT(row["token_ratio"].get<double>(), 0.2);
    EXPECT_LT(row["token_ratio"].get<double>(), 1);
    EXPECT_GT(row["time_ratio"].get<double>(), 0);
  }
  EXPECT_EQ(rows[0]["token_ratio"], rows[2]["token_ratio"]) << "the same lengths for every mixer";
}

TEST_F(Cli, BenchDrawsTheTrainingStepsOfMixers) {
  const Outcome outcome =
      seqloom("bench --layers --mixers gla,attention --lengths 8,16,32 --json --chart " + path("rates.svg"));
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_GT(json::parse(outcome.out)[1]["tokens_per_second"][2].get<double>(), 0);
  const std::string svg = read_text(path("rates.svg"));
  EXPECT_NE(svg.find("<polyline class='line s1 bold'"), std::string::npos) << "attention stands out";
  EXPECT_NE(svg.find(">gla</text>"), std::string::npos);
  expect_error(seqloom("bench --stream --chart x.svg"), 2, "--layers");
}

TEST_F(Cli, BenchStreamsMixersAtSeveralPositions) {
  const Outcome outcome = seqloom("bench --stream --mixers gla,attention --positions 8,600 --json");
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  const json rows = json::parse(outcome.out);
  ASSERT_EQ(rows.size(), 2U);
  EXPECT_EQ(rows[0]["bytes"][0], rows[0]["bytes"][1]) << "a fixed-size memory";
  EXPECT_LT(rows[1]["bytes"][0], rows[1]["bytes"][1]) << "a growing one";
  expect_error(seqloom("bench --stream --mixers glo"), 2, "did you mean 'gla'?");
  expect_error(seqloom("bench"), 2, "name a recipe or a checkpoint");
}

TEST_F(Cli, AnOutFolderThatIsAFileIsRefused) {
  write_text(path("taken"), "a file");
  expect_error(seqloom("train " + recipe() + " --out " + path("taken")), 2, "cannot be made a folder");
}

#ifndef SEQLOOM_SANITIZED
TEST_F(Cli, AMixerInOneFileGetsOptionsRecipesAndBenchmarks) {
  // tests/plugins/toy_mixer.cpp is nothing but that file, in a library that is loaded beside the binary
  const std::string with_toy = "LD_PRELOAD=" + std::string(SEQLOOM_BINARY_DIR) + "/tests/libtoy_mixer.so ";
  const std::string binary = std::string(SEQLOOM_BINARY_DIR) + "/seqloom ";
  const Outcome shown = run(with_toy + binary + "mixers show toy");
  EXPECT_NE(shown.out.find("what stays of the mean after a token"), std::string::npos) << shown.err;
  const std::string train =
      with_toy + binary + "train " + recipe() + " --out " + path("toy") + " --set model.layers.0.mixer=";
  EXPECT_EQ(run(train + "'{ kind = \"toy\", decay = 0.5 }'").status, 0);
  expect_error(run(train + "'{ kind = \"toy\", decay = 2 }' --overwrite"), 2,
               "decay = 2: expected a value >= 0 and < 1");
  const Outcome listed = run(with_toy + std::string(SEQLOOM_BINARY_DIR) + "/ops_benchmark --benchmark_list_tests");
  EXPECT_NE(listed.out.find("mixer_step/toy"), std::string::npos) << listed.err;
}
#endif

}  // namespace
}  // namespace seqloom
