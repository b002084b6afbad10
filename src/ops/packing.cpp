#include "ops/packing.h"

#include <fmt/ostream.h>

#include <algorithm>

#include "base/error.h"
#include "ops/operator.h"

namespace seqloom::ops {
namespace {

using torch::Tensor;

/// The mask as bool [B, T].
Tensor checked(const Tensor& x, const Tensor& mask, bool allow_holes) {
  if (x.dim() < 2 || mask.dim() != 2 || mask.sizes() != x.sizes().slice(0, 2)) {
    misuse("pack_padding: x {}, mask {}: expected x [B, T, ...] and mask [B, T]", fmt::streamed(x.sizes()),
           fmt::streamed(mask.sizes()));
  }
  const Tensor real = mask != 0;
  if (mask.scalar_type() != torch::kBool && (real != (mask == 1)).any().item<bool>()) {
    misuse("pack_padding: the mask has values other than 0 and 1");
  }
  if (!allow_holes && x.size(1) > 1) {
    const Tensor after_padding = real.narrow(1, 1, x.size(1) - 1) > real.narrow(1, 0, x.size(1) - 1);
    if (after_padding.any().item<bool>()) {
      misuse("pack_padding: a real token follows padding in its row; set allow_holes to pack such masks");
    }
  }
  return real;
}

}  // namespace

Packed pack_padding(const Tensor& x, const Tensor& mask, bool allow_holes) {
  const Tensor real = checked(x, mask, allow_holes), lengths = real.sum(1);
  Packed packed;
  packed.indices = real.flatten().nonzero().squeeze(1);
  packed.data = x.flatten(0, 1).index_select(0, packed.indices);
  packed.cu_seqlens = torch::cat({torch::zeros({1}, lengths.options()), lengths.cumsum(0)});
  packed.longest = lengths.numel() > 0 ? lengths.max().item<int64_t>() : 0;
  return packed;
}

Tensor unpack_padding(const Tensor& data, const Tensor& indices, int64_t batch, int64_t tokens) {
  if (data.dim() < 1 || indices.dim() != 1 || indices.scalar_type() != torch::kInt64 ||
      indices.size(0) != data.size(0)) {
    misuse("unpack_padding: data {}, indices {}: expected data [N, ...] and indices int64 [N]",
           fmt::streamed(data.sizes()), fmt::streamed(indices.sizes()));
  }
  if (batch < 0 || tokens < 0) misuse("unpack_padding: batch = {}, tokens = {} must not be negative", batch, tokens);
  const int64_t places = batch * tokens;
  if (indices.numel() > 0 && (indices.min().item<int64_t>() < 0 || indices.max().item<int64_t>() >= places)) {
    misuse("unpack_padding: indices must be in 0 .. {} = batch x tokens - 1", places - 1);
  }
  std::vector<int64_t> shape = data.sizes().vec();
  shape.front() = places;
  return torch::zeros(shape, data.options()).index_copy(0, indices, data).unflatten(0, {batch, tokens});
}

Tensor checked_offsets(const Tensor& offsets, int64_t rows, const char* name) {
  const bool integers = offsets.scalar_type() == torch::kInt64 || offsets.scalar_type() == torch::kInt32;
  if (offsets.dim() != 1 || offsets.size(0) < 1 || !integers) {
    misuse("{} is {} {}, expected int64 or int32 [S + 1]", name, fmt::streamed(offsets.dtype()),
           fmt::streamed(offsets.sizes()));
  }
  const Tensor wide = offsets.to(torch::kCPU, torch::kInt64).contiguous();
  const auto* first = wide.const_data_ptr<int64_t>();
  const auto* last = first + wide.size(0) - 1;
  if (*first != 0 || *last != rows || !std::is_sorted(first, last + 1)) {
    misuse("{} must rise from 0 to the number of rows, {}", name, rows);
  }
  return wide;
}

Tensor dense_offsets(int64_t batch, int64_t tokens) {
  return torch::arange(batch + 1, torch::kInt64) * tokens;
}

std::vector<Tensor> split_sequences(const Tensor& t, const Tensor& offsets, int64_t dim) {
  return t.tensor_split(offsets.narrow(0, 1, offsets.size(0) - 2), dim);
}

std::vector<int64_t> to_vector(const Tensor& offsets) {
  const auto* first = offsets.const_data_ptr<int64_t>();
  return {first, first + offsets.size(0)};
}

Tensor channel_rows(const Tensor& t) {
  const Tensor rows = t.transpose(1, 2).reshape({-1, t.size(1)});
  return rows.stride(1) == 1 || rows.size(1) == 1 ? rows : rows.contiguous();
}

TORCH_LIBRARY_FRAGMENT(seqloom, m) {
  define(m, "pack_padding(Tensor x, Tensor mask, bool allow_holes=False) -> (Tensor, Tensor, Tensor, SymInt)",
         [](const Tensor& x, const Tensor& mask, bool allow_holes) {
           const Packed packed = pack_padding(x, mask, allow_holes);
           return std::make_tuple(packed.data, packed.cu_seqlens, packed.indices, c10::SymInt(packed.longest));
         });
  define(m, "unpack_padding(Tensor data, Tensor indices, SymInt batch, SymInt tokens) -> Tensor", &unpack_padding);
}

}  // namespace seqloom::ops
