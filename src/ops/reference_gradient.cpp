#include "ops/reference_gradient.h"

#include <algorithm>

namespace seqloom::ops {

using torch::autograd::variable_list;

variable_list reference_gradients(const variable_list& outputs, const variable_list& inputs,
                                  const variable_list& gradients) {
  variable_list wanted;
  for (const auto& input : inputs) {
    if (input.defined() && input.requires_grad()) wanted.push_back(input);
  }
  const auto found = torch::autograd::grad(outputs, wanted, gradients, /*retain_graph=*/true, /*create_graph=*/true,
                                           /*allow_unused=*/true);
  variable_list all(inputs.size());
  size_t next = 0;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (inputs[i].defined() && inputs[i].requires_grad()) all[i] = found[next++];
  }
  return all;
}

bool wants_gradient(const variable_list& inputs) {
  return torch::GradMode::is_enabled() && std::any_of(inputs.begin(), inputs.end(), [](const torch::Tensor& t) {
           return t.defined() && t.requires_grad();
         });
}

}  // namespace seqloom::ops
