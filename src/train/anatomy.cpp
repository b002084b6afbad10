#include "train/anatomy.h"

#include <algorithm>

namespace seqloom {
namespace {

bool streams(const Decoder& decoder) {
  const auto modules = decoder.modules();
  return std::all_of(modules.begin(), modules.end(), [](const std::shared_ptr<torch::nn::Module>& module) {
    const auto* mixer = dynamic_cast<const Mixer*>(module.get());
    return mixer == nullptr || (mixer->causal() && dynamic_cast<const CausalMixer*>(mixer) != nullptr);
  });
}

}  // namespace

std::optional<int64_t> stream_bytes(Decoder& decoder, const torch::Tensor& ids) {
  if (!streams(decoder)) return std::nullopt;
  const torch::NoGradGuard no_grad;
  Memory memory = decoder.empty_memory(1);
  decoder.extend(ids, memory);
  return memory.clone().bytes();  // a copy has no spare capacity, which says nothing about a model
}

std::vector<MixingPicture> mixing_pictures(Decoder& decoder, const DecoderOptions& options, const torch::Tensor& ids) {
  // What a mixer reads is only known from outside where nothing is added to the embedding and norms come first.
  if (options.position != "none" || options.residual.residual != "pre") return {};
  const torch::NoGradGuard no_grad;
  const auto parts = decoder.named_children();
  torch::Tensor x = parts["embedding"]->as<torch::nn::Embedding>()->forward(ids);
  const auto layers = parts["layers"]->children();
  std::vector<MixingPicture> pictures;
  Pass pass;
  for (size_t i = 0; i < layers.size(); ++i) {
    auto& block = dynamic_cast<ResidualBlock&>(*layers[i]);
    if (i == 0 || i + 1 == layers.size()) {
      auto& norm = dynamic_cast<Norm&>(*block.named_children()["mixer_norm"]);
      if (const auto form = block.mixer().matrix(norm.forward(x))) {
        pictures.push_back({static_cast<int64_t>(i), form->matrix[0][0].to(torch::kFloat32).contiguous().clone()});
      }
    }
    x = block.forward(x, pass);
  }
  return pictures;
}

}  // namespace seqloom
