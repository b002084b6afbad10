#pragma once

#include <optional>
#include <utility>

#include "base/torch.h"

namespace seqloom::ops {

/// y = W x + b + (alpha / r) B A x   (LoRA, Hu et al. 2021, arXiv 2106.09685, eq. 3): W stays, A and B are trained.
/// x [..., in], weight [out, in], bias [out] or none, A [r, in], B [out, r]. Throws UsageError for other shapes.
torch::Tensor lora(const torch::Tensor& x, const torch::Tensor& weight, const std::optional<torch::Tensor>& bias,
                   const torch::Tensor& A, const torch::Tensor& B, double alpha);

/// W + (alpha / r) B A: the one matrix that gives the same y.
torch::Tensor lora_merged(const torch::Tensor& weight, const torch::Tensor& A, const torch::Tensor& B, double alpha);

/// A and B to begin with: A kaiming uniform (a = sqrt 5, as torch's linear layers), B = 0, so that y = W x + b.
std::pair<torch::Tensor, torch::Tensor> lora_start(const torch::Tensor& weight, int64_t rank);

}  // namespace seqloom::ops
