#include "train/distill.h"

#include <algorithm>

#include "base/error.h"
#include "ops/lora.h"
#include "train/distill_losses.h"
#include "train/token_loss.h"

namespace seqloom {
namespace {

constexpr const char* kWeight = ".weight";

/// The linear layer whose weight has this dotted name, or null.
LinearImpl* linear_of(torch::nn::Module& model, const std::string& weight) {
  for (const auto& item : model.named_modules("", false)) {
    if (item.key() + kWeight == weight) return dynamic_cast<LinearImpl*>(item.value().get());
  }
  return nullptr;
}

std::shared_ptr<Decoder> load_teacher(const std::string& path, int64_t vocabulary, const std::string& where) {
  if (path.empty()) misuse("{}.teacher is missing; name the checkpoint of a trained model", where);
  const Checkpoint checkpoint = open_checkpoint(path);
  auto teacher =
      std::make_shared<Decoder>(vocabulary, checkpoint.recipe.value("model", Config()), checkpoint.path + ": model");
  load_model(checkpoint, *teacher);
  for (auto& parameter : teacher->parameters()) parameter.requires_grad_(false);
  teacher->eval();
  return teacher;
}

/// What a model's mixers read and give, layer by layer.
struct Activations {
  std::vector<Tensor> inputs, outputs;  // [B, T, D]
  Tensor logits;
};

Activations run(Decoder& model, const Tensor& ids) {
  Activations seen;
  Pass pass;
  pass.watch = [&](const std::string& name, const Tensor& value) {
    if (name == "mixer.input") seen.inputs.push_back(value);
    if (name == "mixer.output") seen.outputs.push_back(value);
  };
  seen.logits = model.logits(model.hidden(ids, pass));
  return seen;
}

}  // namespace

std::vector<std::string> updated_weights(const torch::nn::Module& student, const Checkpoint& teacher) {
  const Safetensors file(teacher.path);
  std::vector<std::string> names;
  for (const auto& parameter : student.named_parameters()) {
    const std::string& name = parameter.key();
    const auto found = file.tensors().find("model." + name);
    if (found == file.tensors().end() || torch::IntArrayRef(found->second.shape) != parameter.value().sizes()) continue;
    if (name.find(".mixer.") != std::string::npos && name.ends_with("_proj.weight")) names.push_back(name);
  }
  return names;
}

LowRankUpdates::LowRankUpdates(torch::nn::Module& model, const std::vector<std::string>& names, int64_t rank,
                               double alpha)
    : alpha_(alpha) {
  for (const auto& name : names) {
    LinearImpl* linear = linear_of(model, name);
    if (linear == nullptr) continue;
    const auto [A, B] = ops::lora_start(linear->weight, rank);
    updates_.push_back(
        {linear, linear->weight, linear->register_parameter("lora_A", A), linear->register_parameter("lora_B", B)});
  }
}

void LowRankUpdates::learn(bool on) {
  for (auto& update : updates_) {
    update.A.requires_grad_(on);
    update.B.requires_grad_(on);
  }
}

void LowRankUpdates::apply() {
  // The layer's registered parameter stays as it is; its forward pass reads the member `weight`.
  for (auto& update : updates_) update.linear->weight = ops::lora_merged(update.weight, update.A, update.B, alpha_);
}

void LowRankUpdates::merge() {
  const torch::NoGradGuard no_grad;
  for (auto& update : updates_) {
    update.weight.copy_(ops::lora_merged(update.weight, update.A, update.B, alpha_));
    update.B.zero_();
    update.linear->weight = update.weight;
  }
}

Distillation::Distillation(const DistillOptions& options, const std::string& where, std::shared_ptr<Decoder> student)
    : options_(options), student_(std::move(student)) {
  teacher_ = load_teacher(options_.teacher, student_->vocabulary(), where);
  if (teacher_->layer_count() != student_->layer_count() || teacher_->width() != student_->width()) {
    misuse("{}.teacher: {} has {} layers of width {}, the model here {} of width {}; give both the same shape", where,
           options_.teacher, teacher_->layer_count(), teacher_->width(), student_->layer_count(), student_->width());
  }
  const torch::NoGradGuard no_grad;
  const auto taught = teacher_->named_parameters();
  for (auto& parameter : student_->named_parameters()) {
    const Tensor* given = taught.find(parameter.key());
    const bool inherited = given != nullptr && given->sizes() == parameter.value().sizes();
    if (!inherited) continue;
    parameter.value().copy_(*given);
    inherited_.push_back(parameter.value());
  }
  if (inherited_.empty()) misuse("{}.teacher: {} has no weight in common with the model", where, options_.teacher);
  if (options_.lora_rank > 0) {
    const auto names = updated_weights(*student_, open_checkpoint(options_.teacher));
    updates_ = LowRankUpdates(*student_, names, options_.lora_rank, options_.lora_alpha);
  }
}

void Distillation::set_stage(int stage) {
  if (stage == stage_) return;
  stage_ = stage;
  const bool whole = stage == 2 && options_.lora_rank == 0;
  for (auto& parameter : inherited_) parameter.requires_grad_(whole);
  updates_.learn(stage == 2);
}

Tensor Distillation::loss(int64_t step, const Tensor& ids, const Tensor& targets) {
  set_stage(step < options_.attention_steps ? 1 : 2);
  updates_.apply();
  return stage_ == 1 ? attention_transfer(ids) : fine_tuning(ids, targets);
}

double Distillation::transfer_error(const Tensor& ids) {
  const torch::NoGradGuard no_grad;
  updates_.apply();
  const Activations seen = run(*teacher_, ids);
  double total = 0;
  for (int64_t layer = 0; layer < student_->layer_count(); ++layer) {
    const Tensor error = student_->mixer(layer).forward(seen.inputs[layer]) - seen.outputs[layer];
    total += (error.pow(2).mean() / seen.outputs[layer].var(/*unbiased=*/false)).item<double>();
  }
  return total / static_cast<double>(student_->layer_count());
}

Tensor Distillation::attention_transfer(const Tensor& ids) {
  Activations seen;
  {
    const torch::NoGradGuard no_grad;
    seen = run(*teacher_, ids);
  }
  // Every student mixer reads what the teacher's read: no layer sees the errors of those below it.
  std::vector<AttentionPair> layers;
  Pass pass;
  for (int64_t layer = 0; layer < student_->layer_count(); ++layer) {
    layers.push_back({{}, {}, student_->mixer(layer).forward(seen.inputs[layer], pass), seen.outputs[layer]});
  }
  Tensor loss = attention_transfer_loss(layers, /*xent_factor=*/0, options_.mse).total;
  for (const auto& extra : pass.losses) loss = loss + extra;
  return loss;
}

Tensor Distillation::fine_tuning(const Tensor& ids, const Tensor& targets) {
  if (options_.kl == 0) return token_loss(*student_, ids, targets);
  Pass pass;
  const Tensor logits = student_->logits(student_->hidden(ids, pass));
  Tensor teacher;
  {
    const torch::NoGradGuard no_grad;
    Pass own;
    teacher = teacher_->logits(teacher_->hidden(ids, own));
  }
  DistillationWeights weights;
  weights.kl = options_.kl;
  weights.temperature = options_.temperature;
  Tensor loss = distillation_loss(logits, teacher, targets, {}, {}, weights).total;
  for (const auto& extra : pass.losses) loss = loss + extra;
  return loss;
}

std::unique_ptr<Distillation> make_distillation(const Config& recipe, const std::string& name,
                                                std::shared_ptr<Decoder> student) {
  if (!recipe.contains("distill")) return nullptr;
  const std::string where = name + ": distill";
  return std::make_unique<Distillation>(read_options<DistillOptions>(recipe["distill"], where), where,
                                        std::move(student));
}

void load_student(const Checkpoint& checkpoint, Decoder& student) {
  const auto options = read_options<DistillOptions>(checkpoint.recipe["distill"], checkpoint.path + ": distill");
  const Safetensors file(checkpoint.path);
  constexpr std::string_view kPrefix = "model.", kSuffix = ".lora_A";
  std::vector<std::string> names;
  for (const auto& [name, info] : file.tensors()) {
    if (!name.starts_with(kPrefix) || !name.ends_with(kSuffix)) continue;
    names.push_back(name.substr(kPrefix.size(), name.size() - kPrefix.size() - kSuffix.size()) + kWeight);
  }
  LowRankUpdates updates;
  if (!names.empty() && options.lora_rank > 0) {
    updates = LowRankUpdates(student, names, options.lora_rank, options.lora_alpha);
  }
  load_model(checkpoint, student);
  updates.merge();
}

}  // namespace seqloom
