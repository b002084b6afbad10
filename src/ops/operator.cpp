#include "ops/operator.h"

#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/jit/frontend/function_schema_parser.h>

#include <algorithm>
#include <string>

namespace seqloom::ops {
namespace {

using c10::DispatchKey;
using c10::DispatchKeySet;
using c10::IValue;
using c10::OperatorHandle;
using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using torch::jit::Stack;

const std::string kSuffix = "_backward";

OperatorHandle find_operator(const std::string& name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), "");
}

Stack arguments_of(const OperatorHandle& op, Stack& stack) {
  return torch::jit::pop(stack, op.schema().arguments().size());
}

/// An op's call without its tensors, which autograd keeps.
struct Call : torch::CustomClassHolder {
  explicit Call(std::string op) : op(std::move(op)) {}

  std::string op;
  Stack arguments, outputs;

  /// Whether argument i is a tensor that was given.
  std::vector<bool> is_tensor;

  variable_list take_tensors() {
    variable_list tensors;
    for (auto& argument : arguments) {
      is_tensor.push_back(argument.isTensor() && argument.toTensor().defined());
      if (!is_tensor.back()) continue;
      tensors.push_back(argument.toTensor());
      argument = IValue();
    }
    return tensors;
  }

  Stack with_tensors(at::TensorList tensors) const {
    Stack full = arguments;
    auto next = tensors.begin();
    for (size_t i = 0; i < full.size(); ++i) {
      if (is_tensor[i]) full[i] = *next++;
    }
    return full;
  }
};

bool differentiable(const Tensor& t) {
  return t.requires_grad() && torch::autograd::isDifferentiableType(t.scalar_type());
}

/// Any op as a node of the autograd graph whose forward and backward are calls of the dispatcher: NAME(...) and
/// NAME_backward(...). This is what torch.compile can trace, and what it needs no formula of each op for.
class Traced : public torch::autograd::Function<Traced> {
 public:
  static variable_list forward(AutogradContext* context, at::TensorList tensors, const c10::intrusive_ptr<Call>& call) {
    context->save_for_backward(tensors.vec());
    context->saved_data["call"] = IValue::make_capsule(call);
    Stack stack = call->with_tensors(tensors);
    {
      const at::AutoDispatchBelowADInplaceOrView below_autograd;
      find_operator(call->op).callBoxed(stack);
    }
    variable_list outputs;
    for (const auto& output : stack) {
      if (output.isTensor()) outputs.push_back(output.toTensor());
      call->outputs.push_back(output.isTensor() ? IValue() : output);
    }
    return outputs;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto call = c10::static_intrusive_pointer_cast<Call>(context->saved_data["call"].toCapsule());
    const variable_list tensors = context->get_saved_variables();
    c10::List<bool> wanted;
    for (const Tensor& tensor : tensors) wanted.push_back(differentiable(tensor));
    Stack stack = call->with_tensors(tensors);
    stack.emplace_back(gradients);
    stack.emplace_back(wanted);
    find_operator(call->op + kSuffix).callBoxed(stack);
    const auto found = stack.back().toTensorVector();
    variable_list result;
    auto next = found.begin();
    for (const bool want : wanted) result.push_back(want ? *next++ : Tensor());
    result.emplace_back();  // of the call
    return result;
  }
};

/// Plain tensors run the op's own function, whose autograd nodes keep what they need. Whatever only stands for a tensor
/// (while torch.compile traces, under a dispatch mode, on the meta device) goes by `Traced`.
void autograd(const OperatorHandle& op, DispatchKeySet keys, Stack* stack) {
  const bool stands_for_tensor = keys.has_any(DispatchKeySet({DispatchKey::Python, DispatchKey::Functionalize})) ||
                                 keys.has_backend(c10::BackendComponent::MetaBit);
  if (!stands_for_tensor) {
    op.redispatchBoxed(keys & c10::after_autograd_keyset, stack);
    return;
  }
  auto call = c10::make_intrusive<Call>(op.schema().name());
  call->arguments = arguments_of(op, *stack);
  const variable_list tensors = call->take_tensors();
  const variable_list outputs = Traced::apply(at::TensorList(tensors), call);
  auto next = outputs.begin();
  for (const auto& output : call->outputs) torch::jit::push(*stack, output.isNone() ? IValue(*next++) : output);
}

/// A gradient as an op may return it: laid out as its input, in memory of its own.
Tensor own_gradient(const Tensor& gradient, const Tensor& input) {
  if (!gradient.defined()) return torch::zeros_like(input);
  Tensor result = torch::empty_like(input);
  if (gradient.strides() == result.strides() && gradient.storage().use_count() == 1) return gradient;
  return result.copy_(gradient);
}

/// NAME_backward(arguments of NAME, gradients of its differentiable outputs, wanted) -> the gradients of those tensor
/// arguments that are wanted, in their order. Runs NAME again and differentiates that: nothing but its inputs is kept.
void backward(const OperatorHandle& op, Stack* stack) {
  const auto wanted = torch::jit::pop(*stack).toBoolList();
  const variable_list gradients = torch::jit::pop(*stack).toTensorVector();
  const std::string name = op.schema().name().substr(0, op.schema().name().size() - kSuffix.size());
  const OperatorHandle forward = find_operator(name);
  auto call = c10::make_intrusive<Call>(name);
  call->arguments = arguments_of(forward, *stack);
  const variable_list tensors = call->take_tensors();
  variable_list inputs, leaves, outputs, cotangents;
  for (size_t i = 0; i < tensors.size(); ++i) {
    inputs.push_back(tensors[i].detach().requires_grad_(wanted.get(i)));
    if (wanted.get(i)) leaves.push_back(inputs.back());
  }
  {
    // This kernel runs below autograd; what it differentiates does not.
    const auto keys = c10::impl::tls_local_dispatch_key_set();
    const c10::impl::ForceDispatchKeyGuard as_above(
        {keys.included_, keys.excluded_ - c10::autograd_dispatch_keyset_with_ADInplaceOrView});
    const at::AutoGradMode with_gradients(true);
    Stack again = call->with_tensors(inputs);
    forward.callBoxed(again);
    size_t place = 0;
    for (const auto& output : again) {
      if (!output.isTensor()) continue;
      const Tensor& gradient = gradients.at(place++);
      if (!output.toTensor().requires_grad()) continue;
      outputs.push_back(output.toTensor());
      cotangents.push_back(gradient);
    }
    if (!outputs.empty()) {
      leaves = torch::autograd::grad(outputs, leaves, cotangents, {}, /*create_graph=*/false, /*allow_unused=*/true);
    } else {
      std::fill(leaves.begin(), leaves.end(), Tensor());
    }
  }
  std::vector<Tensor> result;
  size_t next = 0;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!wanted.get(i)) continue;
    Tensor gradient = std::move(leaves[next++]);
    result.push_back(own_gradient(gradient, inputs[i]));
  }
  torch::jit::push(*stack, std::move(result));
}

constexpr DispatchKeySet kAutocast({DispatchKey::AutocastCPU, DispatchKey::AutocastCUDA});

/// Inside an op nothing is cast: it keeps sums and states in float32 itself.
void autocast_as_it_comes(const OperatorHandle& op, Stack* stack) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(kAutocast);
  op.callBoxed(stack);
}

void autocast_to_lower(const OperatorHandle& op, Stack* stack) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(kAutocast);
  const size_t count = op.schema().arguments().size();
  for (auto argument = stack->end() - static_cast<int64_t>(count); argument != stack->end(); ++argument) {
    if (!argument->isTensor() || !argument->toTensor().defined()) continue;
    const Tensor t = argument->toTensor();
    const auto device = t.device().type();
    if (device == c10::kCPU || device == c10::kCUDA) {
      *argument = at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), t, device);
    }
  }
  op.callBoxed(stack);
}

c10::FunctionSchema backward_schema(const c10::FunctionSchema& forward) {
  std::vector<c10::Argument> arguments;
  for (const auto& argument : forward.arguments()) {
    arguments.emplace_back(argument.name(), argument.type(), argument.real_type());
  }
  arguments.emplace_back("gradients", c10::ListType::ofTensors());
  arguments.emplace_back("wanted", c10::ListType::ofBools());
  return {forward.name() + kSuffix, "", std::move(arguments), {c10::Argument("", c10::ListType::ofTensors())}};
}

}  // namespace

namespace detail {

Tensor settled(const Tensor& output, bool transposed, const std::vector<Tensor>& others) {
  const Tensor dense = transposed ? output.transpose(-1, -2).contiguous().transpose(-1, -2) : output.contiguous();
  const bool shared = std::any_of(others.begin(), others.end(),
                                  [&](const Tensor& other) { return other.defined() && dense.is_alias_of(other); });
  return shared ? dense.clone() : dense;
}

void complete(torch::Library& library, const char* schema, const OperatorTraits& traits) {
  const c10::FunctionSchema forward = torch::jit::parseSchema(schema);
  const std::string name = forward.name(), of_gradient = name + kSuffix;
  library.def(backward_schema(forward), {at::Tag::pt2_compliant_tag});
  const auto implement = [&](const std::string& op, DispatchKey key, torch::CppFunction&& kernel) {
    library.impl(op.c_str(), torch::dispatch(key, std::move(kernel)));
  };
  using torch::CppFunction;
  implement(name, DispatchKey::Autograd, CppFunction::makeFromBoxedFunction<&autograd>());
  implement(of_gradient, DispatchKey::CompositeExplicitAutograd, CppFunction::makeFromBoxedFunction<&backward>());
  implement(of_gradient, DispatchKey::Autograd, torch::autograd::autogradNotImplementedFallback());
  for (const auto key : kAutocast) {
    implement(name, key,
              traits.lower_in_autocast ? CppFunction::makeFromBoxedFunction<&autocast_to_lower>()
                                       : CppFunction::makeFromBoxedFunction<&autocast_as_it_comes>());
  }
}

}  // namespace detail
}  // namespace seqloom::ops
