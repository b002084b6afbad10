#pragma once

#include <string>

#include "base/fields.h"
#include "base/torch.h"
#include "blocks/norm.h"

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

/// norm(y) act(gate).
inline torch::Tensor gated_norm(RmsNorm& norm, const torch::Tensor& y, const std::string& gate_fn,
                                const torch::Tensor& gate) {
  if (gate_fn == "swish" || gate_fn == "silu") return norm.gated(y, gate);
  return norm.forward(y) * gate_activation(gate_fn, gate);
}

}  // namespace seqloom
