// Every registered mixer: its options are the case's config, its parameters and memory have the case's names.
#include "base/error.h"
#include "conformance/case.h"
#include "mixers/mixer.h"

namespace seqloom::conformance {
namespace {

std::shared_ptr<Mixer> build(Case& golden) {
  const std::string kind = golden.component.substr(golden.component.find('.') + 1);
  if (!mixers().contains(kind)) throw Unsupported("no such mixer");
  std::map<std::string, std::vector<int64_t>> shapes;
  for (const auto& [name, tensor] : golden.param) shapes[name] = tensor.sizes().vec();
  for (const auto& [name, tensor] : golden.in) shapes["in." + name] = tensor.sizes().vec();
  Config config = golden.config;
  for (const char* said_elsewhere : {"d_model", "mixer", "position_offset", "state_n"}) config.erase(said_elsewhere);
  try {
    return mixers().get(kind).make(golden.input("x").size(-1), mixers().get(kind).from_case(config, shapes), kind);
  } catch (const UsageError& error) {
    throw Unsupported(error.what());
  }
}

/// Copies the case's parameters into the module; the module's are the leaves that get gradients.
void load_parameters(Case& golden, Mixer& mixer) {
  auto own = mixer.named_parameters();
  for (const auto& parameter : own) {
    if (golden.param.count(parameter.key()) == 0)
      fail("the mixer has a parameter '{}', the case has none", parameter.key());
  }
  const torch::NoGradGuard no_grad;
  for (auto& [name, tensor] : golden.param) {
    torch::Tensor* target = own.find(name);
    if (target == nullptr) fail("the case has a parameter '{}', the mixer has none", name);
    if (target->sizes() != tensor.sizes()) {
      fail("parameter '{}' is {} in the case, {} in the mixer", name, fmt::streamed(tensor.sizes()),
           fmt::streamed(target->sizes()));
    }
    target->copy_(tensor);
    tensor = *target;
  }
}

Pass make_pass(const Case& golden) {
  Pass pass;
  Layout* keys = &pass.layout;
  if (golden.has("context")) {
    pass.context = golden.input("context");
    keys = &pass.context_layout;
  }
  for (const char* name : {"key_mask", "mask"}) {
    if (golden.has(name)) *keys = Layout::masked(golden.input(name).to(torch::kBool));
  }
  if (golden.has("positions")) pass.positions = golden.input("positions");
  return pass;
}

TensorMap run_mixer(Case& golden) {
  const auto mixer = build(golden);
  load_parameters(golden, *mixer);
  Pass pass = make_pass(golden);
  const torch::Tensor x = golden.input("x");
  auto* causal = dynamic_cast<CausalMixer*>(mixer.get());
  if (causal == nullptr || !causal->causal()) return {{"y", mixer->forward(x, pass)}};

  Memory memory = causal->empty_memory(x.size(0));
  memory.tokens = golden.config.value("position_offset", golden.config.value("state_n", int64_t{0}));
  for (const auto& [name, tensor] : golden.in) {
    if (name.rfind("state.", 0) == 0) memory[name.substr(6)] = tensor;
  }
  TensorMap outputs = {{"y", causal->extend(x, memory, pass)}};
  for (const auto& name : golden.state_outputs()) {
    if (memory.contains(name)) outputs["state." + name] = memory.at(name);
  }
  return outputs;
}

[[maybe_unused]] const bool registered = adapters().add("mixer.*", run_mixer);

}  // namespace
}  // namespace seqloom::conformance
