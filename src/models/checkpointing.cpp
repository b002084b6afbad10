#include "models/checkpointing.h"

#include <ATen/autocast_mode.h>

namespace seqloom {
namespace {

using Run = std::function<torch::Tensor(const torch::Tensor&)>;

/// A function carried through the autograd context, which holds IValues only.
struct RunHolder : torch::CustomClassHolder {
  RunHolder(Run run, bool autocast) : run(std::move(run)), autocast(autocast) {}
  Run run;
  bool autocast;
};

class Checkpoint : public torch::autograd::Function<Checkpoint> {
 public:
  static torch::Tensor forward(torch::autograd::AutogradContext* context, const torch::Tensor& x,
                               const c10::intrusive_ptr<RunHolder>& holder) {
    context->save_for_backward({x});
    context->saved_data["run"] = c10::IValue::make_capsule(holder);
    at::NoGradGuard no_grad;
    return holder->run(x);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    auto holder = c10::static_intrusive_pointer_cast<RunHolder>(context->saved_data["run"].toCapsule());
    torch::Tensor x = context->get_saved_variables()[0].detach().requires_grad_(true);
    torch::Tensor y;
    {
      at::AutoGradMode with_grad(true);
      const bool before = at::autocast::is_autocast_enabled(at::kCPU);
      at::autocast::set_autocast_enabled(at::kCPU, holder->autocast);
      y = holder->run(x);
      at::autocast::set_autocast_enabled(at::kCPU, before);
    }
    torch::autograd::backward({y}, {gradients[0]});
    return {x.grad(), torch::Tensor()};
  }
};

}  // namespace

torch::Tensor checkpointed(Run run, const torch::Tensor& x) {
  return Checkpoint::apply(x,
                           c10::make_intrusive<RunHolder>(std::move(run), at::autocast::is_autocast_enabled(at::kCPU)));
}

}  // namespace seqloom
