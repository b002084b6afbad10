#pragma once

#include <optional>
#include <utility>

#include "base/torch.h"

namespace seqloom::ops {

/// y = x W^T + b, x [..., in] -> [..., out] in the type of x, summed in at least float32. weight [out, in] is floating,
/// of whatever type, or int8 with scale [out, groups] float32: the entries of a row's group of in / groups columns are
/// multiplied by its scale. bias [out].
///
/// A few rows of x on a CPU (decoding) go through a kernel that reads float32, bfloat16 or int8 weights once, at the
/// speed of memory, and multiplies them in float32 with x as it is. Many rows are torch's GEMM: of float32 weights in
/// float32, of bfloat16 ones with x rounded to bfloat16 where the machine multiplies those, of int8 ones panel by panel
/// in float32. While a RowByRow lives (row_by_row.h), all rows are few. Throws UsageError for shapes and types that do
/// not fit.
torch::Tensor linear(const torch::Tensor& x, const torch::Tensor& weight,
                     const std::optional<torch::Tensor>& scale = {}, const std::optional<torch::Tensor>& bias = {});

/// weight [..., in] as numbers of a floating type; scale [..., groups] beside int8, else undefined.
torch::Tensor dense_weight(const torch::Tensor& weight, const torch::Tensor& scale, torch::ScalarType type);

/// The nearest int8 weights in -127..127 and scales [..., groups] of weight [..., in], groups of `group` columns; one
/// group for the row where `group` is 0 or does not divide `in`. An entry is off by at most half its scale, which is
/// the greatest magnitude of its group / 127. Throws Error where an entry is not finite.
std::pair<torch::Tensor, torch::Tensor> int8_weight(const torch::Tensor& weight, int64_t group);

}  // namespace seqloom::ops
