// Every registered mixer: its options are the case's config, its parameters and memory have the case's names. Inputs
// that are nothing else are values handed from layer to layer; outputs are looked for in the memory, among those values
// and among the activations that the mixer shows.
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
  for (const auto& [name, tensor] : golden.in) {
    const std::string kind = name.substr(0, name.find('.'));
    const bool read_elsewhere = kind == "x" || kind == "cotangent" || kind == "state" || kind == "context" ||
                                kind == "mask" || kind == "key_mask" || kind == "positions";
    if (!read_elsewhere) pass.values[name] = tensor;
  }
  return pass;
}

/// What the case expects beside y and the state: "attn", "v_first", or a memory that is one tensor, "state".
void add_inner_outputs(const Case& golden, const Memory& memory, const Pass& pass, const TensorMap& watched,
                       TensorMap& outputs) {
  for (const auto& [name, expected] : golden.out) {
    if (outputs.count(name) > 0) continue;
    if (memory.contains(name)) {
      outputs[name] = memory.at(name);
    } else if (pass.values.count(name) > 0) {
      outputs[name] = pass.values.at(name);
    } else if (watched.count(name) > 0) {
      outputs[name] = watched.at(name);
    }
  }
}

TensorMap run_mixer(Case& golden) {
  const auto mixer = build(golden);
  load_parameters(golden, *mixer);
  Pass pass = make_pass(golden);
  TensorMap watched;
  pass.watch = [&](const std::string& name, const torch::Tensor& value) { watched[name] = value; };
  const torch::Tensor x = golden.input("x");
  auto* causal = dynamic_cast<CausalMixer*>(mixer.get());
  TensorMap outputs;
  if (causal == nullptr || !causal->causal()) {
    outputs["y"] = mixer->forward(x, pass);
    add_inner_outputs(golden, Memory(), pass, watched, outputs);
    return outputs;
  }

  Memory memory = causal->empty_memory(x.size(0));
  memory.tokens = golden.config.value("position_offset", golden.config.value("state_n", int64_t{0}));
  for (const auto& [name, tensor] : golden.in) {
    if (name.rfind("state.", 0) == 0) memory[name.substr(6)] = tensor;
  }
  outputs["y"] = causal->extend(x, memory, pass);
  for (const auto& name : golden.state_outputs()) {
    if (memory.contains(name)) outputs["state." + name] = memory.at(name);
  }
  add_inner_outputs(golden, memory, pass, watched, outputs);
  return outputs;
}

[[maybe_unused]] const bool registered = adapters().add("mixer.*", run_mixer);

}  // namespace
}  // namespace seqloom::conformance
