#include "ops/recompute.h"

#include <algorithm>

namespace seqloom::ops {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// A function carried through the autograd context, which holds IValues only.
struct RunHolder : torch::CustomClassHolder {
  explicit RunHolder(ManyToMany run) : run(std::move(run)) {}
  ManyToMany run;
};

class Recompute : public torch::autograd::Function<Recompute> {
 public:
  static variable_list forward(AutogradContext* context, at::TensorList inputs,
                               const c10::intrusive_ptr<RunHolder>& holder) {
    context->save_for_backward(inputs.vec());
    context->saved_data["run"] = c10::IValue::make_capsule(holder);
    return holder->run(inputs.vec());
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto holder = c10::static_intrusive_pointer_cast<RunHolder>(context->saved_data["run"].toCapsule());
    variable_list inputs, wanted, outputs, cotangents;
    for (const Tensor& saved : context->get_saved_variables()) {
      inputs.push_back(saved.detach().requires_grad_(saved.requires_grad()));
      if (saved.requires_grad()) wanted.push_back(inputs.back());
    }
    const at::AutoGradMode with_gradients(true);
    const variable_list again = holder->run(inputs);
    for (size_t i = 0; i < again.size(); ++i) {
      if (!again[i].requires_grad()) continue;
      outputs.push_back(again[i]);
      cotangents.push_back(gradients[i]);
    }
    const variable_list found = torch::autograd::grad(outputs, wanted, cotangents, {}, false, /*allow_unused=*/true);
    variable_list result;
    auto next = found.begin();
    for (const Tensor& input : inputs) result.push_back(input.requires_grad() ? *next++ : Tensor());
    result.emplace_back();  // of the holder
    return result;
  }
};

}  // namespace

std::vector<Tensor> recomputed(ManyToMany run, const std::vector<Tensor>& inputs) {
  const bool needed = torch::GradMode::is_enabled() &&
                      std::any_of(inputs.begin(), inputs.end(), [](const Tensor& t) { return t.requires_grad(); });
  if (!needed) return run(inputs);
  return Recompute::apply(at::TensorList(inputs), c10::make_intrusive<RunHolder>(std::move(run)));
}

}  // namespace seqloom::ops
