#include "train/distill.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "base/error.h"
#include "io/toml.h"
#include "support/process.h"
#include "tasks/language.h"
#include "train/trainer.h"

namespace seqloom {
namespace {

constexpr const char* kTask = "[task]\nkind = 'language'\ncontext = 32\neval_tokens = 128\n";
constexpr const char* kTrain = "[train]\nbatch = 4\nlearning_rate = 1e-2\nschedule = 'constant'\nweight_decay = 0.0\n";

/// A softmax teacher trained for a few steps, and a gated linear student with the teacher's projections.
class Distill : public InTemporaryFolder {
 protected:
  void SetUp() override {
    InTemporaryFolder::SetUp();
    std::string text;
    for (int i = 0; i < 400; ++i) text += "the cat sat on the mat and the dog lay by the door; ";
    write_text(path("text.txt"), text);
    Trainer teacher(recipe("kind = 'attention', heads = 2", ""), "teacher", path("teacher"), false);
    teacher.run({});
  }

  Config recipe(const std::string& mixer, const std::string& more) const {
    const std::string model = "[model]\nwidth = 16\nlayers = [{ repeat = 2, mixer = { " + mixer + " } }]\n";
    Config config = parse_toml(kTask + model + kTrain + more, "recipe");
    config["task"]["data"] = path("text.txt");
    config["train"]["steps"] = 6;
    return config;
  }
  Config student(const std::string& options, int64_t steps) const {
    Config config = recipe("kind = 'gla', heads = 2, expand_k = 1.0", "[distill]\n" + options);
    config["distill"]["teacher"] = path("teacher");
    config["train"]["steps"] = steps;
    return config;
  }
  TensorMap weights(const std::string& run) const {
    const Safetensors file((std::filesystem::path(path(run)) / "checkpoint.safetensors").string());
    TensorMap all;
    for (const auto& [name, info] : file.tensors()) {
      if (name.starts_with("model.")) all[name.substr(6)] = file.load(name);
    }
    return all;
  }
};

TEST_F(Distill, StageOneTeachesOnlyWhatIsNewToImitateTheTeachersOutputs) {
  Trainer trainer(student("attention_steps = 40", 40), "student", path("student"), false);
  std::vector<double> losses;
  TrainObserver observer;
  observer.on_step = [&](const StepReport& report) { losses.push_back(report.loss); };
  trainer.run(observer);
  EXPECT_LT(losses.back(), 0.7 * losses.front());
  const TensorMap teacher = weights("teacher"), learnt = weights("student");
  EXPECT_TRUE(learnt.at("layers.0.mixer.q_proj.weight").equal(teacher.at("layers.0.mixer.q_proj.weight")));
  EXPECT_TRUE(learnt.at("embedding.weight").equal(teacher.at("embedding.weight")));
  EXPECT_EQ(learnt.at("layers.1.mixer.v_proj.lora_B").abs().max().item<float>(), 0);
}

TEST_F(Distill, StageTwoMovesTheTeachersWeightsByLowRankUpdatesThatMergeOnLoading) {
  Trainer trainer(student("attention_steps = 2\nkl = 0.5\ntemperature = 2.0\nlora_rank = 3\nfinetune_rate = 1.0", 12),
                  "student", path("student"), false);
  const auto metrics = trainer.run({});
  const TensorMap teacher = weights("teacher"), learnt = weights("student");
  const std::string q = "layers.0.mixer.q_proj.";
  EXPECT_TRUE(learnt.at(q + "weight").equal(teacher.at(q + "weight")));
  EXPECT_GT(learnt.at(q + "lora_B").abs().max().item<float>(), 0);

  const LanguageModel loaded = load_language_model(path("student"));
  const Tensor merged = loaded.decoder->named_parameters()[q + "weight"];
  const Tensor want =
      learnt.at(q + "weight") + 16.0 / 3 * torch::matmul(learnt.at(q + "lora_B"), learnt.at(q + "lora_A"));
  EXPECT_TRUE(merged.allclose(want, 1e-5, 1e-6));
  const TokenFile text(path("text.txt"), *loaded.tokenizer, path("text.txt.tokens"));
  const auto first = static_cast<int64_t>(static_cast<double>(text.size()) * 0.95);
  EXPECT_NEAR(score_text(*loaded.decoder, *loaded.tokenizer, text, first, first + 129, 32).bits_per_byte(),
              metrics.at("bits_per_byte"), 1e-4);
}

TEST_F(Distill, ARunResumedAcrossTheStagesEndsInTheSameWeights) {
  const Config whole = student("attention_steps = 4\nfinetune_rate = 0.5", 8);
  Trainer(whole, "student", path("whole"), false).run({});
  for (const int64_t stop : {2, 6}) {
    const std::string run = "cut" + std::to_string(stop);
    Config saving = whole;
    saving["train"]["save_every"] = stop;
    try {
      TrainObserver observer;
      observer.on_step = [&](const StepReport& report) {
        if (report.step == stop + 1) throw Error("cut");
      };
      Trainer(saving, "student", path(run), false).run(observer);
      FAIL() << "the run was not cut";
    } catch (const Error&) {
    }
    Trainer(saving, "student", path(run), true).run({});
    for (const auto& [name, tensor] : weights("whole")) {
      EXPECT_TRUE(tensor.equal(weights(run).at(name))) << name << " after a cut at " << stop;
    }
  }
}

TEST_F(Distill, RefusesATeacherThatDoesNotFit) {
  const auto refused = [&](Config recipe, const std::string& part) {
    try {
      Trainer(std::move(recipe), "student.toml", path("refused"), false);
      ADD_FAILURE() << "not refused: " << part;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  };
  Config other = student("", 4);
  other["model"]["layers"][0]["repeat"] = 3;
  refused(other, "give both the same shape");
  other = student("", 4);
  other["distill"].erase("teacher");
  refused(other, "student.toml: distill.teacher is missing");
  other = student("", 4);
  other["distill"]["teacher"] = path("nowhere");
  refused(other, "nowhere");
  other = student("atention_steps = 4", 4);
  refused(other, "did you mean 'attention_steps'");
}

}  // namespace
}  // namespace seqloom
