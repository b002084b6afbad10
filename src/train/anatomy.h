#pragma once

#include <optional>
#include <vector>

#include "base/torch.h"
#include "models/decoder.h"
#include "train/study.h"

namespace seqloom {

/// Bytes that a decoder keeps of one stream once it has read ids [1, T]; nothing where a layer cannot stream.
std::optional<int64_t> stream_bytes(Decoder& decoder, const torch::Tensor& ids);

/// Head 0 of the mixing matrices of the first and the last layer for ids [1, T], of the layers that have one.
std::vector<MixingPicture> mixing_pictures(Decoder& decoder, const torch::Tensor& ids);

}  // namespace seqloom
