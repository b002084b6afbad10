#include "blocks/residual.h"

namespace seqloom {

ResidualBlock::ResidualBlock(int64_t width, const ResidualOptions& options, std::shared_ptr<Mixer> mixer,
                             std::shared_ptr<ChannelMixer> channel, int64_t conv_size)
    : pre_(options.residual == "pre"), mixer_(std::move(mixer)), channel_(std::move(channel)) {
  mixer_norm_ = register_module("mixer_norm", std::make_shared<Norm>(options.norm, width, options.norm_eps));
  if (conv_size > 0) {
    conv_ = register_module("conv", std::make_shared<ShortConv>(width, conv_size, /*bias=*/true, /*silu=*/false));
  }
  register_module("mixer", mixer_);
  if (channel_) {
    channel_norm_ = register_module("channel_norm", std::make_shared<Norm>(options.norm, width, options.norm_eps));
    register_module("channel", channel_);
  }
}

template <typename Mix>
Tensor ResidualBlock::around(const Tensor& x, Mix mix) {
  // The residual stream stays in its own (wider) type when branches run in bfloat16.
  if (pre_) {
    Tensor y = x + mix(mixer_norm_->forward(x));
    return channel_ ? y + channel_->forward(channel_norm_->forward(y)) : y;
  }
  Tensor y = mixer_norm_->forward(x + mix(x));
  return channel_ ? channel_norm_->forward(y + channel_->forward(y)) : y;
}

Tensor ResidualBlock::forward(const Tensor& x, Pass& pass) {
  return around(x, [&](Tensor input) {
    if (conv_) {
      const int64_t sequences = pass.layout.sequences(x.size(0));
      Tensor window = conv_->empty_window(sequences, x.options().requires_grad(false));
      input = conv_->forward(input, window, Columns(pass.layout, input));
    }
    Tensor y = mixer_->forward(input, pass);
    if (pass.watch) {
      pass.watch("mixer.input", input);
      pass.watch("mixer.output", y);
    }
    return y;
  });
}

Tensor ResidualBlock::extend(const Tensor& x, Memory& memory, Pass& pass) {
  if (conv_) memory.advance(x.size(1), pass.layout.keep(x.size(0), x.size(1)));  // else the memory is the mixer's
  return around(x, [&](const Tensor& input) {
    if (!conv_) return causal_mixer().extend(input, memory, pass);
    const Tensor local = conv_->forward(input, memory["conv"], Columns(pass.layout, input));
    return causal_mixer().extend(local, memory.child("mixer"), pass);
  });
}

Tensor ResidualBlock::step(const Tensor& x, at::ArrayRef<Memory*> streams, Pass& pass) {
  return around(x, [&](const Tensor& input) {
    if (!conv_) return causal_mixer().step(input, streams, pass);
    const Tensor local = conv_->step(input, streams, "conv");
    std::vector<Memory*> of_mixer;
    for (Memory* memory : streams) {
      memory->advance(1, {});
      of_mixer.push_back(&memory->child("mixer"));
    }
    return causal_mixer().step(local, of_mixer, pass);
  });
}

Memory ResidualBlock::empty_memory(int64_t batch) const {
  Memory of_mixer = causal_mixer().empty_memory(batch);
  if (!conv_) return of_mixer;
  Memory memory;
  memory["conv"] = conv_->empty_window(batch, conv_->parameters().front().options().requires_grad(false));
  memory.child("mixer") = std::move(of_mixer);
  return memory;
}

void ResidualBlock::replace_mixer(std::shared_ptr<Mixer> mixer) {
  mixer_ = replace_module("mixer", std::move(mixer));
}

CausalMixer& ResidualBlock::causal_mixer() const {
  auto* causal = dynamic_cast<CausalMixer*>(mixer_.get());
  if (causal == nullptr || !causal->causal()) misuse("this layer's mixer is bidirectional: it has no streaming form");
  return *causal;
}

}  // namespace seqloom
