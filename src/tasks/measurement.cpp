#include "tasks/measurement.h"

namespace seqloom {
namespace {

struct MeasuredModel {
  int64_t width = 16;
  Config mixer;

  void describe(Fields& f) {
    f.add("width", width, "model width D").at_least(1).at_most(1 << 16);
    f.add("mixer", mixer, "the mixer that is measured");
  }
};

}  // namespace

Measurement::Measurement(const Config& recipe, const std::string& name, const std::string& kind) : kind_(kind) {
  if (recipe.contains("distill")) misuse("{}: distill: the task {} has no teacher", name, kind);
  const auto model = read_options<MeasuredModel>(recipe["model"], name + ": model");
  mixer_ = make_mixer(model.width, model.mixer, name + ": model.mixer");
}

torch::Tensor Measurement::loss(int64_t) {
  fail("the task {} measures and trains nothing: it has no loss", kind_);
}

void Measurement::set_checkpointing(bool on) {
  if (on) misuse("the task {} trains nothing; leave out train.checkpoint_activations", kind_);
}

}  // namespace seqloom
