// The block and the language model of GAM are the engine's own residual block and decoder around the mixer.
#include <array>

#include "base/error.h"
#include "conformance/case.h"
#include "models/decoder.h"

namespace seqloom::conformance {
namespace {

using torch::Tensor;

/// A parameter of the official GAMBlock -> of a residual block.
std::string block_name(const std::string& name) {
  constexpr std::array<std::pair<const char*, const char*>, 4> kParts = {{
      {"ln1.", "mixer_norm."},
      {"ln2.", "channel_norm."},
      {"ffn.0.", "channel.fc1."},
      {"ffn.2.", "channel.fc2."},
  }};
  for (const auto& [from, to] : kParts) {
    if (name.starts_with(from)) return to + name.substr(std::string(from).size());
  }
  return "mixer." + name;
}

/// A parameter of the official GAM_Model -> of a decoder.
std::string model_name(const std::string& name) {
  if (name == "token_embedding.weight") return "embedding.weight";
  if (name == "pos_embedding.weight") return "position.weight";
  if (name.starts_with("ln_f.")) return "final_norm." + name.substr(5);
  if (!name.starts_with("blocks.")) return name;
  const size_t rest = name.find('.', 7) + 1;
  return "layers." + name.substr(7, rest - 7) + block_name(name.substr(rest));
}

/// Copies the case's parameters into the module; the module's are the leaves that get gradients.
void load_parameters(Case& golden, torch::nn::Module& module, std::string (*name_of)(const std::string&)) {
  auto own = module.named_parameters();
  if (own.size() != golden.param.size()) {
    fail("the case has {} parameters, the module {}", golden.param.size(), own.size());
  }
  const torch::NoGradGuard no_grad;
  for (auto& [name, tensor] : golden.param) {
    Tensor* target = own.find(name_of(name));
    if (target == nullptr || target->sizes() != tensor.sizes()) fail("no parameter of this shape for '{}'", name);
    target->copy_(tensor);
    tensor = *target;
  }
}

/// The options of the table `to` that the case's config has.
Config chosen(const Config& config, const std::vector<std::string>& keys, Config to) {
  for (const auto& key : keys) {
    if (config.contains(key)) to[key] = config[key];
  }
  return to;
}

Config mixer_table(const Config& config) {
  return chosen(config, {"num_slots", "kernel_size", "score_scale", "bidirectional"}, {{"kind", "gam"}});
}

Config channel_table(const Config& config) {
  return {{"kind", "mlp"}, {"expand", config.value("ffn_mult", 4)}};
}

TensorMap gam_block(Case& c) {
  const Tensor x = c.input("x");
  ResidualOptions options;
  options.norm = "layer";
  options.norm_eps = c.config.value("norm_eps", 1e-5);
  ResidualBlock block(x.size(-1), options, make_mixer(x.size(-1), mixer_table(c.config), "block.gam"),
                      make_channel_mixer(x.size(-1), channel_table(c.config), "block.gam"));
  load_parameters(c, block, block_name);
  Memory memory = block.empty_memory(x.size(0));
  Pass pass;
  TensorMap outputs = {{"y", block.extend(x, memory, pass)}};
  for (const auto& name : c.state_outputs()) outputs["state." + name] = memory.at(name);
  return outputs;
}

TensorMap gam_model(Case& c) {
  const Config layer = {
      {"repeat", c.config.at("num_layers")}, {"mixer", mixer_table(c.config)}, {"channel", channel_table(c.config)}};
  const Config table = {{"width", c.config.at("d_model")},
                        {"layers", Config::array({layer})},
                        {"norm", "layer"},
                        {"norm_eps", c.config.value("norm_eps", 1e-5)},
                        {"position", "learned"},
                        {"max_length", c.config.at("max_len")},
                        {"tied", c.config.value("tie_embeddings", true)}};
  Decoder decoder(c.config.at("vocab_size").get<int64_t>(), table, "model.gam");
  load_parameters(c, decoder, model_name);
  Pass pass;
  const Tensor logits = decoder.logits(decoder.hidden(c.input("tokens"), pass));
  TensorMap outputs = {{"y", logits}};
  if (c.has("targets")) {
    outputs["loss"] = torch::cross_entropy_loss(logits.flatten(0, 1), c.input("targets").flatten());
  }
  return outputs;
}

[[maybe_unused]] const bool registered =
    adapters().add("block.gam", gam_block) && adapters().add("model.gam", gam_model);

}  // namespace
}  // namespace seqloom::conformance
