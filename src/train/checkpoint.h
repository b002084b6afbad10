#pragma once

#include <map>
#include <string>

#include "base/fields.h"
#include "base/torch.h"
#include "blocks/linear.h"
#include "io/safetensors.h"

namespace seqloom {

/// A training run at rest: one safetensors file that carries everything needed to use the model or to go on training.
/// Tensors "model.NAME" and, for going on, "optimizer.NAME.{exp_avg,exp_avg_sq}".
struct Checkpoint {
  std::string path;  // the file
  Config recipe;
  int64_t step = 0;
  std::map<std::string, std::string> attachments;
  WeightFormat weights;  // of the matrices; the metadata's key "weights", which trained checkpoints lack
};

/// `path` may be the file or the run's folder, which holds checkpoint.safetensors.
std::string checkpoint_file(const std::string& path);

/// Reads what a checkpoint says of itself. Throws Error when it is not a checkpoint.
Checkpoint open_checkpoint(const std::string& path);

void save_checkpoint(const Checkpoint& checkpoint, const torch::nn::Module& model, const TensorMap& optimizer);

/// Copies "model.*" into the module, to be trained; numbers of other floating types become the module's. Throws Error
/// listing every missing, unknown or misshapen tensor, and where the weights are int8.
void load_model(const Checkpoint& checkpoint, torch::nn::Module& model);

/// The same for a module that is only used: its tensors are where they lie in the file, mapped into memory, linear
/// layers and embeddings in the format the file has them in, and take no gradient. The file may be replaced meanwhile
/// but not truncated or written to (Safetensors::view).
void map_model(const Checkpoint& checkpoint, torch::nn::Module& model);

/// Identifies recipe and step: a saved state belongs to one model.
std::string fingerprint(const Checkpoint& checkpoint);

}  // namespace seqloom
