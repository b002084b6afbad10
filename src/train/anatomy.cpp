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

std::vector<MixingPicture> mixing_pictures(Decoder& decoder, const torch::Tensor& ids) {
  const torch::NoGradGuard no_grad;
  std::vector<torch::Tensor> inputs;  // of each layer's mixer
  Pass pass;
  pass.watch = [&](const std::string& name, const torch::Tensor& value) {
    if (name == "mixer.input") inputs.push_back(value);
  };
  decoder.hidden(ids, pass);
  std::vector<MixingPicture> pictures;
  for (size_t i = 0; i < inputs.size(); i += std::max<size_t>(1, inputs.size() - 1)) {
    if (const auto form = decoder.mixer(i).matrix(inputs[i])) {
      pictures.push_back({static_cast<int64_t>(i), form->matrix[0][0].to(torch::kFloat32).contiguous().clone()});
    }
  }
  return pictures;
}

}  // namespace seqloom
