#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/fields.h"
#include "base/torch.h"
#include "models/decoder.h"
#include "train/checkpoint.h"

namespace seqloom {

/// The metric that a task with a teacher adds.
constexpr const char* kTransferError = "transfer_error";

struct DistillOptions {
  std::string teacher;
  int64_t attention_steps = 200, lora_rank = 8;
  double mse = 1000, kl = 0, temperature = 1, finetune_rate = 0.01, lora_alpha = 16;

  void describe(Fields& f) {
    f.add("teacher", teacher, "checkpoint of the model to learn from");
    f.add("attention_steps", attention_steps, "steps of stage 1, attention transfer; the rest is stage 2, fine-tuning")
        .at_least(0);
    f.add("mse", mse, "stage 1: weight of the mean squared error of the mixers' outputs").greater_than(0);
    f.add("kl", kl, "stage 2: weight of temperature^2 KL(teacher || student), beside cross entropy").at_least(0);
    f.add("temperature", temperature, "of both in that KL").greater_than(0);
    f.add("finetune_rate", finetune_rate, "stage 2: factor on the learning rate").greater_than(0);
    f.add("lora_rank", lora_rank,
          "stage 2: rank of the updates of weights that come from the teacher, 0: train them whole")
        .at_least(0)
        .at_most(4096);
    f.add("lora_alpha", lora_alpha, "stage 2: updates are scaled by alpha / rank").greater_than(0);
  }
};

/// The mixers' projections that the student takes over from a teacher: what low-rank updates apply to. Names like
/// "layers.0.mixer.q_proj.weight".
std::vector<std::string> updated_weights(const torch::nn::Module& student, const Checkpoint& teacher);

/// Low-rank updates of linear layers, W + (alpha / rank) B A, for those weights of a model that are given (Hu et al.
/// 2021, arXiv 2106.09685). A and B are parameters of the linear layers (`lora_A` [r, in], `lora_B` [out, r]), so that
/// checkpoints hold them beside the weight that they leave alone.
class LowRankUpdates {
 public:
  LowRankUpdates() = default;
  /// `names`: weights by dotted name, "layers.0.mixer.q_proj.weight". A is drawn, B is 0: nothing changes at first.
  LowRankUpdates(torch::nn::Module& model, const std::vector<std::string>& names, int64_t rank, double alpha);

  /// Whether A and B learn.
  void learn(bool on);
  /// Lets the next forward pass use the updated weights, as a function of A and B.
  void apply();
  /// Adds the updates to the weights for good.
  void merge();

 private:
  struct Update {
    LinearImpl* linear;
    Tensor weight, A, B;
  };
  std::vector<Update> updates_;
  double alpha_ = 0;
};

/// Turns a trained softmax model into one of other mixers with few tokens (LAWCAT, arXiv 2509.18467; stages after
/// LoLCATs, arXiv 2410.10254). The student takes over every weight of the teacher that has the same name and shape.
///   stage 1  each student mixer reads what the teacher's reads and imitates its output; only what is new in it learns
///   stage 2  next-token training of the whole; the teacher's weights move by low-rank updates
class Distillation {
 public:
  /// Throws UsageError or Error naming `where` when teacher and student do not fit.
  Distillation(const DistillOptions& options, const std::string& where, std::shared_ptr<Decoder> student);

  /// The loss of a micro-batch of step `step`: ids, targets [B, T] int64.
  Tensor loss(int64_t step, const Tensor& ids, const Tensor& targets);
  /// Mean squared error of the student's mixers on what the teacher's read, over the variance of the teacher's outputs;
  /// the mean over layers. ids [B, T] int64.
  double transfer_error(const Tensor& ids);
  /// Factor on the learning rate at a step.
  double rate_factor(int64_t step) const { return step < options_.attention_steps ? 1 : options_.finetune_rate; }
  /// To be called before the student is used outside of `loss`.
  void apply_updates() { updates_.apply(); }

 private:
  void set_stage(int stage);
  Tensor attention_transfer(const Tensor& ids);
  Tensor fine_tuning(const Tensor& ids, const Tensor& targets);

  DistillOptions options_;
  std::shared_ptr<Decoder> student_, teacher_;
  std::vector<Tensor> inherited_;  // parameters of the student that are the teacher's at first
  LowRankUpdates updates_;
  int stage_ = 0;
};

/// What the recipe's table [distill] asks for; null where it has none. `name` is the recipe's file, for messages.
std::unique_ptr<Distillation> make_distillation(const Config& recipe, const std::string& name,
                                                std::shared_ptr<Decoder> student);

/// As load_model, for a checkpoint that distillation wrote: its low-rank updates are merged into the weights.
void load_student(const Checkpoint& checkpoint, Decoder& student);

}  // namespace seqloom
