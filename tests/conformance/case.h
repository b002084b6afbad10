#pragma once

#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/fields.h"
#include "base/registry.h"
#include "base/torch.h"
#include "io/safetensors.h"

namespace seqloom::conformance {

/// A golden vector (seqloom-case-1). Inputs and parameters whose gradients are asked for require one.
struct Case {
  std::string component, name;
  Config config;
  TensorMap in, param, out, grad;  // names without their prefix
  double rtol = 0, atol = 0;

  bool has(const std::string& input) const { return in.count(input) > 0; }
  /// An input that must be there.
  const torch::Tensor& input(const std::string& name) const;
  std::optional<torch::Tensor> optional_input(const std::string& name) const;
  std::optional<torch::Tensor> optional_param(const std::string& name) const;
  /// The expected outputs "state.NAME" by NAME.
  std::vector<std::string> state_outputs() const;
};

/// Throws Error when the file is not a case.
Case load_case(const std::string& path);

/// This engine has no such component, or not with these options.
struct Unsupported : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Rebuilds a component from a case and returns its outputs by name ("y", "state.S"). An adapter that keeps parameters
/// in a module puts the module's tensors into case.param, where the runner looks for gradients.
using Adapter = std::function<TensorMap(Case&)>;

/// Adapters by component; one whose name ends in ".*" serves a family, e.g. "mixer.*".
Registry<Adapter>& adapters();
/// Throws Unsupported.
const Adapter& adapter_for(const std::string& component);

struct Result {
  enum class Verdict { kPass, kFail, kUnsupported } verdict = Verdict::kPass;
  double max_error = 0;  // largest |got - want|
  std::string message;   // what failed, or why it is unsupported
};

Result check(Case& golden);

}  // namespace seqloom::conformance
