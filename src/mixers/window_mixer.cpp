#include "mixers/window_mixer.h"

#include <fmt/ostream.h>

namespace seqloom {
namespace {

Tensor last(const Tensor& x, int64_t count) {
  const int64_t kept = std::min(count, x.size(1));
  return x.narrow(1, x.size(1) - kept, kept);
}

/// The last `most` tokens of two runs, in memory of their own.
Tensor joined(const Tensor& earlier, const Tensor& later, int64_t most) {
  const Tensor fresh = last(later, most);
  return torch::cat({last(earlier, most - fresh.size(1)), fresh.to(earlier.scalar_type())}, 1);
}

}  // namespace

WindowMixer::WindowMixer(int64_t width, int64_t window, std::string name)
    : ScannableMixer(width), window_(window), name_(std::move(name)) {}

Memory WindowMixer::empty_memory(int64_t batch) const {
  Memory memory;
  memory[name_] = torch::zeros({batch, window_, width()}, state_options());
  return memory;
}

Tensor WindowMixer::before(const Tensor& x, const Layout& layout, const Memory& memory) const {
  const Tensor& inputs = memory.at(name_);
  const int64_t rows = layout.sequences(x.size(0));
  const std::vector<int64_t> expected = {rows, window_, width()};
  if (inputs.sizes() != expected) {
    misuse("the memory has {} {}, expected [{}, {}, {}], the last inputs of each row", name_,
           fmt::streamed(inputs.sizes()), rows, window_, width());
  }
  return inputs.to(x.scalar_type());
}

void WindowMixer::remember(const Tensor& fresh, const Columns& columns, Memory& memory) const {
  memory[name_] = columns.slid(memory.at(name_), fresh);
}

Memory WindowMixer::identity_element(int64_t batch) const {
  Memory nothing;
  nothing["x"] = torch::zeros({batch, 0, width()}, state_options());
  return nothing;
}

Memory WindowMixer::element(const Tensor& x, Memory& memory, Pass& pass) {
  Memory run;
  run["x"] = joined(identity_element(x.size(0)).at("x"), x, window_);
  return run;
}

Memory WindowMixer::combine_elements(const Memory& left, const Memory& right) const {
  Memory both;
  both["x"] = joined(left.at("x"), right.at("x"), window_);
  return both;
}

void WindowMixer::apply_element(const Memory& element, Memory& memory) {
  memory[name_] = joined(memory.at(name_), element.at("x"), window_);
}

Tensor toeplitz_matrix(const Tensor& taps, int64_t tokens, int64_t current) {
  const Tensor place = torch::arange(tokens, taps.options().dtype(torch::kInt64).requires_grad(false));
  const Tensor tap = place.unsqueeze(0) - place.unsqueeze(1) + current;
  const Tensor outside = (tap < 0).logical_or(tap >= taps.size(1));
  return taps.index({torch::indexing::Slice(), tap.clamp(0, taps.size(1) - 1)}).masked_fill(outside, 0);
}

}  // namespace seqloom
