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

/// Tokens counted from 0: 0 .. T-1 for x [B, T, D], [T] int64; in each of packed rows anew, [1, N].
inline torch::Tensor counted_positions(const torch::Tensor& x, const Layout& layout) {
  const torch::Tensor places = torch::arange(x.size(1), torch::TensorOptions(torch::kInt64).device(x.device()));
  if (!layout.is_packed()) return places;
  layout.check_packed(x);
  const torch::Tensor offsets = layout.offsets().to(x.device());
  return (places - offsets.narrow(0, 0, offsets.size(0) - 1).repeat_interleave(offsets.diff())).unsqueeze(0);
}

/// Where the tokens of whole sequences x [B, T, D] stand: as given, or counted.
inline torch::Tensor token_positions(const torch::Tensor& x, const Pass& pass) {
  return pass.positions.defined() ? given_positions(x, pass) : counted_positions(x, pass.layout);
}

/// Where the tokens of x stand that go on from `memory`: as given, or a token's position is the number of real ones
/// that its row has read before it, [B, T] int64, [T] as long as all rows agree.
inline torch::Tensor token_positions(const torch::Tensor& x, const Pass& pass, const Memory& memory) {
  if (pass.positions.defined()) return given_positions(x, pass);
  const torch::Tensor places = counted_positions(x, pass.layout);
  if (pass.layout.is_packed()) return places;  // they have no tokens before them
  const torch::Tensor keep = pass.layout.keep(x.size(0), x.size(1));
  if (!keep.defined() && memory.even()) return memory.tokens + places;
  const torch::Tensor earlier = keep.defined() ? keep.cumsum(1) - keep.to(torch::kInt64) : places.unsqueeze(0);
  return memory.counts(x).unsqueeze(1) + earlier;
}

}  // namespace seqloom
