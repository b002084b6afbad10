// A mixer whose codebook the case gives and whose codes and loss it wants.
#include "conformance/module.h"
#include "mixers/longvq.h"

namespace seqloom::conformance {
namespace {

TensorMap longvq_case(Case& c) {
  const torch::Tensor x = c.input("x");
  Config table = LongVq::from_case(c.config, {});
  for (const char* said_elsewhere : {"d_model", "mixer", "position_offset", "state_n"}) table.erase(said_elsewhere);
  LongVq mixer(x.size(-1), read_options<LongVqOptions>(table, "mixer.longvq"));
  fill_module(c, mixer);
  Pass pass;
  TensorMap outputs;
  pass.watch = [&](const std::string& name, const torch::Tensor& value) { outputs[name] = value; };
  if (c.has("mask")) pass.layout = Layout::masked(c.input("mask").to(torch::kBool));
  if (!mixer.causal()) {
    outputs["y"] = mixer.forward(x, pass);
    return outputs;
  }
  Memory memory = mixer.empty_memory(x.size(0));
  for (const auto& [name, tensor] : c.in) {
    if (name.rfind("state.", 0) == 0) memory[name.substr(6)] = tensor;
  }
  outputs["y"] = mixer.extend(x, memory, pass);
  for (const auto& [name, tensor] : memory.tensors()) outputs["state." + name] = tensor;
  return outputs;
}

[[maybe_unused]] const bool registered = adapters().add("mixer.longvq", longvq_case);

}  // namespace
}  // namespace seqloom::conformance
