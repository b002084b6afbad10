#pragma once
#include <memory>
#include <string>

#include "mixers/mixer.h"
#include "train/task.h"

namespace seqloom {

/// A task that trains nothing: it measures one mixer as it is, that of [model] width = 16, mixer = { kind = "gla" }.
class Measurement : public Task {
 public:
  /// Throws UsageError naming the key. `kind` is the task's.
  Measurement(const Config& recipe, const std::string& name, const std::string& kind);

  torch::nn::Module& model() override { return *mixer_; }
  bool trains() const override { return false; }
  torch::Tensor loss(int64_t index) override;
  int64_t tokens_per_batch() const override { return 0; }
  void set_checkpointing(bool on) override;

 protected:
  Mixer& mixer() const { return *mixer_; }

 private:
  std::string kind_;
  std::shared_ptr<Mixer> mixer_;
};

}  // namespace seqloom
