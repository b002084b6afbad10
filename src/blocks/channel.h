#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/fields.h"
#include "base/registry.h"
#include "base/torch.h"

namespace seqloom {

/// Mixes the channels of each token: x [..., D] -> y [..., D]. The other half of a block.
class ChannelMixer : public torch::nn::Module {
 public:
  virtual torch::Tensor forward(const torch::Tensor& x) = 0;
};

struct ChannelEntry {
  std::string about;
  std::function<Fields()> fields;  // the options with their defaults; the values live as long as the program
  std::function<std::shared_ptr<ChannelMixer>(int64_t width, const Config& table, const std::string& where)> make;
};

Registry<ChannelEntry>& channel_mixers();

/// A channel mixer from `{ kind = "swiglu", hidden = 512 }`; nullptr for kind "none".
std::shared_ptr<ChannelMixer> make_channel_mixer(int64_t width, const Config& table, const std::string& where);

}  // namespace seqloom
