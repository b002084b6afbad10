#include "conformance/case.h"
#include "ops/lora.h"
#include "train/distill_losses.h"

namespace seqloom::conformance {
namespace {

using torch::Tensor;

Tensor of_layer(const Case& c, const std::string& name, int64_t layer) {
  return c.optional_input(name + "." + std::to_string(layer)).value_or(Tensor());
}

int64_t layers(const Case& c) {
  return c.config.at("num_layers").get<int64_t>();
}

TensorMap attention_transfer(Case& c) {
  std::vector<AttentionPair> pairs;
  for (int64_t l = 0; l < layers(c); ++l) {
    pairs.push_back({of_layer(c, "student_attn", l), of_layer(c, "teacher_attn", l), of_layer(c, "student_out", l),
                     of_layer(c, "teacher_out", l)});
  }
  const auto loss =
      attention_transfer_loss(pairs, c.config.value("xent_factor", 0.0), c.config.value("mse_factor", 1000.0));
  return {{"y", loss.total}, {"loss_xent", loss.xent}, {"loss_mse", loss.mse}};
}

TensorMap distillation(Case& c) {
  DistillationWeights weights;
  weights.ce = c.config.value("ce_weight", weights.ce);
  weights.kl = c.config.value("kl_weight", weights.kl);
  weights.hidden = c.config.value("hidden_weight", weights.hidden);
  weights.temperature = c.config.value("temperature", weights.temperature);
  weights.ignore_index = c.config.value("ignore_index", weights.ignore_index);
  std::vector<Tensor> hidden, teacher;
  for (int64_t l = 0; l < layers(c); ++l) {
    hidden.push_back(of_layer(c, "hidden", l));
    teacher.push_back(of_layer(c, "teacher_hidden", l));
  }
  const auto loss =
      distillation_loss(c.input("logits"), c.input("teacher_logits"), c.input("labels"), hidden, teacher, weights);
  return {{"y", loss.total}, {"loss_ce", loss.ce}, {"loss_kl", loss.kl}, {"loss_hidden", loss.hidden}};
}

TensorMap lora(Case& c) {
  const Tensor &weight = c.param.at("weight"), &A = c.param.at("lora_A.weight"), &B = c.param.at("lora_B.weight");
  const double alpha = c.config.at("alpha").get<double>();
  return {{"y", ops::lora(c.input("x"), weight, c.optional_param("bias"), A, B, alpha)},
          {"merged_weight", ops::lora_merged(weight, A, B, alpha)}};
}

[[maybe_unused]] const bool registered = adapters().add("loss.attention_transfer", attention_transfer) &&
                                         adapters().add("loss.distillation", distillation) &&
                                         adapters().add("op.lora", lora);

}  // namespace
}  // namespace seqloom::conformance
