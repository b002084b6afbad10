#pragma once
#include <fmt/ostream.h>

#include "base/error.h"
#include "conformance/case.h"

namespace seqloom::conformance {

inline void copy_checked(torch::Tensor& target, const torch::Tensor& value, const std::string& name) {
  const torch::NoGradGuard no_grad;
  if (target.sizes() != value.sizes()) {
    fail("'{}' is {} in the case, {} in the module", name, fmt::streamed(value.sizes()), fmt::streamed(target.sizes()));
  }
  target.copy_(value);
}

/// Copies the case's parameters into the module, whose own become the leaves that get gradients, and inputs that have a
/// buffer's name into that buffer. Throws Error where names or shapes differ.
inline void fill_module(Case& golden, torch::nn::Module& module) {
  auto own = module.named_parameters();
  for (const auto& parameter : own) {
    if (golden.param.count(parameter.key()) == 0) fail("the case has no parameter '{}'", parameter.key());
  }
  for (auto& [name, tensor] : golden.param) {
    torch::Tensor* target = own.find(name);
    if (target == nullptr) fail("the module has no parameter '{}'", name);
    copy_checked(*target, tensor, name);
    tensor = *target;
  }
  for (auto& buffer : module.named_buffers()) {
    if (golden.has(buffer.key())) copy_checked(buffer.value(), golden.input(buffer.key()), buffer.key());
  }
}

}  // namespace seqloom::conformance
