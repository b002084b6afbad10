#pragma once
#include <fmt/ostream.h>

#include "base/error.h"
#include "base/torch.h"
#include "memory/memory.h"
#include "mixers/layout.h"

namespace seqloom {

/// pass.positions [B, T] for x [B, T, D]. Throws UsageError for another shape.
inline const torch::Tensor& given_positions(const torch::Tensor& x, const Pass& pass) {
  if (pass.positions.sizes() != x.sizes().slice(0, 2)) {
    misuse("positions are {}, expected [{}, {}] as x has", fmt::streamed(pass.positions.sizes()), x.size(0), x.size(1));
  }
  return pass.positions;
}

/// Where the tokens of a whole sequence x [B, T, D] stand: as given, or 0 .. T-1, [T] int64.
inline torch::Tensor token_positions(const torch::Tensor& x, const Pass& pass) {
  if (pass.positions.defined()) return given_positions(x, pass);
  return torch::arange(x.size(1), torch::TensorOptions(torch::kInt64).device(x.device()));
}

/// Where the tokens of x stand that go on from `memory`: as given, or a token's position is the number of real ones
/// that its row has read before it, [B, T] int64, [T] as long as all rows agree.
inline torch::Tensor token_positions(const torch::Tensor& x, const Pass& pass, const Memory& memory) {
  if (pass.positions.defined()) return given_positions(x, pass);
  const torch::Tensor places = token_positions(x, pass);
  const torch::Tensor keep = pass.layout.keep(x.size(0), x.size(1));
  if (!keep.defined() && memory.even()) return memory.tokens + places;
  const torch::Tensor earlier = keep.defined() ? keep.cumsum(1) - keep.to(torch::kInt64) : places.unsqueeze(0);
  return memory.counts(x).unsqueeze(1) + earlier;
}

}  // namespace seqloom
