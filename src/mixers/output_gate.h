#pragma once

#include <string>

#include "base/fields.h"
#include "base/torch.h"

namespace seqloom {

/// The option that names the activation of an output gate, as flash-linear-attention spells them.
inline void describe_gate_fn(Fields& f, std::string& gate_fn) {
  f.add("gate_fn", gate_fn, "act of the output gate").one_of({"swish", "silu", "sigmoid", "identity"});
}

/// act(x) by that name; swish and silu are the same.
inline torch::Tensor gate_activation(const std::string& gate_fn, const torch::Tensor& x) {
  if (gate_fn == "sigmoid") return torch::sigmoid(x);
  if (gate_fn == "identity") return x;
  return torch::silu(x);
}

}  // namespace seqloom
