#pragma once

#include <torch/optim/adamw.h>

#include <memory>
#include <string>
#include <vector>

#include "base/fields.h"
#include "base/torch.h"

namespace seqloom {

struct TrainOptions {
  int64_t steps = 1000, batch = 16, accumulate = 1, warmup = 0;
  double learning_rate = 1e-3, final_factor = 0.1, weight_decay = 0.01, beta1 = 0.9, beta2 = 0.95, eps = 1e-8,
         clip = 1.0;
  std::string schedule = "cosine", precision = "float32";
  bool checkpoint_activations = false;
  int64_t eval_every = 0, save_every = 0, seed = 0;

  void describe(Fields& f) {
    f.add("steps", steps, "optimiser steps").at_least(1);
    f.add("batch", batch, "rows of a micro-batch").at_least(1).at_most(1 << 20);
    f.add("accumulate", accumulate, "micro-batches of one step").at_least(1);
    f.add("learning_rate", learning_rate, "AdamW's peak rate").greater_than(0);
    f.add("schedule", schedule, "of the learning rate after warm-up").one_of({"cosine", "linear", "constant"});
    f.add("warmup", warmup, "steps of linear warm-up").at_least(0);
    f.add("final_factor", final_factor, "the schedule ends at this part of the peak").at_least(0).at_most(1);
    f.add("weight_decay", weight_decay, "decoupled; not for vectors and what mixers exempt").at_least(0);
    f.add("beta1", beta1, "AdamW").at_least(0).less_than(1);
    f.add("beta2", beta2, "AdamW").at_least(0).less_than(1);
    f.add("eps", eps, "AdamW").greater_than(0);
    f.add("clip", clip, "largest gradient norm, 0: no clipping").at_least(0);
    f.add("precision", precision, "bfloat16: matrix products in bfloat16, weights in float32")
        .one_of({"float32", "bfloat16"});
    f.add("checkpoint_activations", checkpoint_activations, "recompute blocks in the backward pass to save memory");
    f.add("eval_every", eval_every, "steps between evaluations, 0: at the end only").at_least(0);
    f.add("save_every", save_every, "steps between checkpoints, 0: at the end only").at_least(0);
    f.add("seed", seed, "of weights and data order").at_least(0);
  }
};

/// Matrix products in bfloat16 while it lives, if `on`.
class Autocast {
 public:
  explicit Autocast(bool on);
  ~Autocast();
  Autocast(const Autocast&) = delete;
  Autocast& operator=(const Autocast&) = delete;

 private:
  bool before_, on_;
};

/// AdamW over `parameters`; those of `without_weight_decay`, which are among them, do not decay.
std::unique_ptr<torch::optim::AdamW> make_optimizer(const std::vector<torch::Tensor>& parameters,
                                                    const std::vector<torch::Tensor>& without_weight_decay,
                                                    const TrainOptions& options);

/// One step of it, for the parameters that have a gradient. By torch's fused kernel: the optimiser's own step reads and
/// writes the parameters a dozen times.
void update_parameters(torch::optim::AdamW& optimizer);

}  // namespace seqloom
