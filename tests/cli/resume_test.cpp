// A run that is killed and resumed ends in the very weights of an unbroken one.
#include <gtest/gtest.h>

#include "support/process.h"
#include "train/checkpoint.h"

namespace seqloom {
namespace {

class Resume : public InTemporaryFolder {
 protected:
  void SetUp() override {
    InTemporaryFolder::SetUp();
    std::filesystem::copy_file(std::filesystem::path(SEQLOOM_SOURCE_DIR) / "LICENSE", folder / "text.txt");
    write_text(folder / "recipe.toml", R"([task]
kind = "language"
data = ")" + path("text.txt") + R"("
context = 64
eval_tokens = 64

[model]
width = 32
layers = [
  { mixer = { kind = "mamba", state = 4 } },
  { mixer = { kind = "attention", heads = 2, window = 16 } },
  { mixer = { kind = "gated_deltanet", heads = 2, head_dim = 8 } },
]

[train]
steps = 40
batch = 2
accumulate = 2
save_every = 3
warmup = 5
)");
  }

  std::string command(const std::string& out) const {
    return std::string(SEQLOOM_BINARY_DIR) + "/seqloom train " + path("recipe.toml") + " --resume --out " + path(out);
  }

  /// Starts the run and kills it once its metrics show `step` steps.
  void kill_at(const std::string& out, int step) const {
    const std::string metrics = path(out) + "/metrics.jsonl";
    const std::string script = command(out) + " & run=$!; while [ \"$(grep -c loss " + metrics +
                               " 2>/dev/null || true)\" -lt " + std::to_string(step) +
                               " ]; do sleep 0.02; kill -0 $run 2>/dev/null || exit 9; done; kill -9 $run; wait $run";
    EXPECT_EQ(run(script).status, 137) << "the run ended before it was killed";
  }

  void expect_same_checkpoints(const std::string& one, const std::string& other) const {
    const Safetensors whole(path(one) + "/checkpoint.safetensors"), broken(path(other) + "/checkpoint.safetensors");
    ASSERT_EQ(whole.tensors().size(), broken.tensors().size());
    for (const auto& [name, info] : whole.tensors()) {
      EXPECT_TRUE(whole.load(name).equal(broken.load(name))) << name << " differs after resuming";
    }
  }
};

TEST_F(Resume, KilledRunsEndInTheSameWeights) {
  ASSERT_EQ(run(command("unbroken")).status, 0);
  kill_at("broken", 1);  // before the first checkpoint
  kill_at("broken", 8);  // between two
  kill_at("broken", 22);
  const Outcome last = run(command("broken"));
  ASSERT_EQ(last.status, 0) << last.err;
  expect_same_checkpoints("unbroken", "broken");
  // a line for every step, none twice
  const std::string lines = read_text(path("broken") + "/metrics.jsonl");
  for (int step = 1; step <= 40; ++step) {
    const std::string loss_line = "\"step\":" + std::to_string(step) + ",\"tokens_per_second\"";
    const size_t first = lines.find(loss_line);
    EXPECT_NE(first, std::string::npos) << step;
    EXPECT_EQ(lines.find(loss_line, first + 1), std::string::npos) << step << " occurs twice";
  }
  for (const auto& entry : std::filesystem::directory_iterator(path("broken"))) {
    const std::string name = entry.path().filename().string();
    EXPECT_TRUE(name == "checkpoint.safetensors" || name == "metrics.jsonl" || name.ends_with(".part")) << name;
  }
}

TEST_F(Resume, AHybridOfFiveMemoriesResumesStreamsAndRestoresItsState) {
  const std::string recipe = read_text(path("recipe.toml"));
  const size_t begin = recipe.find("layers = ["), end = recipe.find("[train]");
  write_text(path("recipe.toml"), recipe.substr(0, begin) + R"(layers = [
  { mixer = { kind = "aaren", heads = 2 } },
  { mixer = { kind = "titans", heads = 2, dim_head = 8, chunk = 4 } },
  { mixer = { kind = "lawcat", heads = 2, rope = true } },
  { mixer = { kind = "memory_caching", of = { kind = "gla", heads = 2 }, aggregate = "grm", segment = 8 } },
  { mixer = { kind = "longvq", z_dim = 8, num_codes = 8, window = 4 } },
]

)" + recipe.substr(end));
  ASSERT_EQ(run(command("unbroken")).status, 0);
  kill_at("broken", 5);
  ASSERT_EQ(run(command("broken")).status, 0);
  expect_same_checkpoints("unbroken", "broken");

  const std::string generate = "generate " + path("unbroken") + " --temperature 0 ";
  const Outcome whole = seqloom(generate + "--prompt 'a license for the work' --tokens 24");
  ASSERT_EQ(whole.status, 0) << whole.err;
  const Outcome first =
      seqloom(generate + "--prompt 'a license for the work' --tokens 11 --save-state " + path("state"));
  const Outcome rest = seqloom(generate + "--tokens 13 --load-state " + path("state"));
  ASSERT_EQ(rest.status, 0) << first.err << rest.err;
  EXPECT_EQ(first.out.substr(0, first.out.size() - 1) + rest.out, whole.out);
}

}  // namespace
}  // namespace seqloom
