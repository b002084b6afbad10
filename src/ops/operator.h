#pragma once

#include <torch/library.h>

#include <array>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "base/torch.h"

namespace seqloom::ops {

/// What a call through PyTorch's dispatcher has to know of an op, beside its schema.
struct OperatorTraits {
  /// Outputs [..., a, b] that lie in memory as [..., b, a], as the kernels leave them; the others are contiguous. What
  /// torch.compile makes of an op relies on it.
  std::array<bool, 4> transposed = {};
  /// Under autocast its inputs are cast to the lower type, as those of torch's own matrix products are. The others take
  /// types as they come and compute in float32.
  bool lower_in_autocast = false;
};

/// Makes `f` the op of that schema, for Python and for torch.compile: besides the op itself this registers its gradient
/// as an op of its own, NAME_backward, its autograd formula and its autocast rule, which are the same for every op (see
/// operator.cpp). Shapes of fake tensors are in python/seqloom/_fakes.py. C++ calls `f` directly.
template <typename F>
void define(torch::Library& library, const char* schema, F&& f, const OperatorTraits& traits = {});

/// Makes `f` an op that moves states on in place, one more token at a time; it has no gradient.
template <typename F>
void define_update(torch::Library& library, const char* schema, F&& f) {
  library.def(schema, torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, std::forward<F>(f)),
              {at::Tag::pt2_compliant_tag});
}

namespace detail {

/// The output in the op's layout, sharing memory with none of `others`: neither an input nor an output before it.
torch::Tensor settled(const torch::Tensor& output, bool transposed, const std::vector<torch::Tensor>& others);

void complete(torch::Library& library, const char* schema, const OperatorTraits& traits);

inline void collect(std::vector<torch::Tensor>& all, const torch::Tensor& t) {
  all.push_back(t);
}
inline void collect(std::vector<torch::Tensor>& all, const std::optional<torch::Tensor>& t) {
  if (t) all.push_back(*t);
}
template <typename T>
void collect(std::vector<torch::Tensor>&, const T&) {}

template <typename T>
void settle(T& output, bool transposed, std::vector<torch::Tensor>& others) {
  if constexpr (std::is_same_v<T, torch::Tensor>) {
    output = settled(output, transposed, others);
    others.push_back(output);
  }
}

template <typename Result>
Result settle_all(Result result, const OperatorTraits& traits, std::vector<torch::Tensor>& others) {
  if constexpr (std::is_same_v<Result, torch::Tensor>) {
    settle(result, traits.transposed[0], others);
  } else {
    size_t place = 0;
    std::apply([&](auto&... output) { (settle(output, traits.transposed[place++], others), ...); }, result);
  }
  return result;
}

template <typename Result, typename... Arguments>
auto with_settled_outputs(Result (*f)(Arguments...), const OperatorTraits& traits) {
  return [f, traits](Arguments... arguments) -> Result {
    std::vector<torch::Tensor> tensors;
    (collect(tensors, arguments), ...);
    return settle_all(f(arguments...), traits, tensors);
  };
}

}  // namespace detail

template <typename F>
void define(torch::Library& library, const char* schema, F&& f, const OperatorTraits& traits) {
  library.def(schema,
              torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, detail::with_settled_outputs(+f, traits)),
              {at::Tag::pt2_compliant_tag});
  detail::complete(library, schema, traits);
}

}  // namespace seqloom::ops
