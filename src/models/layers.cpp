#include "models/layers.h"

namespace seqloom {
namespace {

struct LayerOptions {
  int64_t repeat = 1, conv = 0;
  Config mixer, channel;
  void describe(Fields& f) {
    f.add("repeat", repeat, "how many such layers follow each other").at_least(1).at_most(1024);
    f.add("conv", conv, "kernel of a causal depthwise convolution before the mixer; 0: none").at_least(0).at_most(1024);
    f.add("mixer", mixer, "the token mixer");
    f.add("channel", channel, "the channel mixer");
  }
};

}  // namespace

std::vector<std::shared_ptr<ResidualBlock>> make_layers(int64_t width, const ResidualOptions& residual,
                                                        const Config& layers, const Config& channel,
                                                        const std::string& where) {
  if (!layers.is_array() || layers.empty()) {
    misuse("{}: expected a list of layers, like [ {{ mixer = {{ kind = \"mamba\" }} }} ]", where);
  }
  std::vector<std::shared_ptr<ResidualBlock>> blocks;
  for (size_t i = 0; i < layers.size(); ++i) {
    const std::string here = fmt::format("{}.{}", where, i);
    const auto layer = read_options<LayerOptions>(layers[i], here);
    const bool own = !layer.channel.is_null();
    for (int64_t r = 0; r < layer.repeat; ++r) {
      blocks.push_back(std::make_shared<ResidualBlock>(
          width, residual, make_mixer(width, layer.mixer, here + ".mixer"),
          make_channel_mixer(width, own ? layer.channel : channel, own ? here + ".channel" : "model.channel"),
          layer.conv));
    }
  }
  return blocks;
}

}  // namespace seqloom
