#include "blocks/channel.h"

#include <optional>

#include "mixers/heads.h"
#include "ops/row_by_row.h"

namespace seqloom {
namespace {

struct MlpOptions {
  std::optional<int64_t> hidden;
  double expand = 4;
  std::string activation = "gelu";
  bool bias = true;

  void describe(Fields& f) {
    f.add("hidden", hidden, "hidden width; none: expand x width").at_least(1);
    f.add("expand", expand, "hidden width as a multiple of the model width").greater_than(0);
    f.add("activation", activation, "between the two projections").one_of({"gelu", "gelu_tanh", "relu", "silu"});
    f.add("bias", bias, "biases in both projections");
  }
};

/// fc2(act(fc1 x)) (Vaswani et al. 2017, arXiv 1706.03762, eq. 2).
class Mlp final : public ChannelMixer {
 public:
  Mlp(int64_t width, const MlpOptions& options) : activation_(options.activation) {
    const int64_t hidden = options.hidden.value_or(static_cast<int64_t>(static_cast<double>(width) * options.expand));
    fc1_ = register_module("fc1", linear(width, hidden, options.bias));
    fc2_ = register_module("fc2", linear(hidden, width, options.bias));
  }

  torch::Tensor forward(const torch::Tensor& x) override { return fc2_(activate(fc1_(x))); }

 private:
  torch::Tensor activate(const torch::Tensor& h) const {
    if (activation_ == "relu") return torch::relu(h);
    return ops::elementwise(h, [this](const torch::Tensor& x) {
      if (activation_ == "gelu") return torch::gelu(x);
      return activation_ == "silu" ? torch::silu(x) : torch::gelu(x, "tanh");
    });
  }

  std::string activation_;
  Linear fc1_{nullptr}, fc2_{nullptr};
};

struct SwigluOptions {
  std::optional<int64_t> hidden;
  bool bias = false;

  void describe(Fields& f) {
    f.add("hidden", hidden, "hidden width; none: 8/3 of the model width, rounded up to a multiple of 16").at_least(1);
    f.add("bias", bias, "biases in the projections");
  }
};

/// down(silu(gate x) * up x) (Shazeer 2020, arXiv 2002.05202).
class Swiglu final : public ChannelMixer {
 public:
  Swiglu(int64_t width, const SwigluOptions& options) {
    const int64_t hidden = options.hidden.value_or((width * 8 / 3 + 15) / 16 * 16);
    gate_proj_ = register_module("gate_proj", linear(width, hidden, options.bias));
    up_proj_ = register_module("up_proj", linear(width, hidden, options.bias));
    down_proj_ = register_module("down_proj", linear(hidden, width, options.bias));
  }

  torch::Tensor forward(const torch::Tensor& x) override {
    return down_proj_(ops::elementwise(gate_proj_(x), [](const torch::Tensor& gate) { return torch::silu(gate); }) *
                      up_proj_(x));
  }

 private:
  Linear gate_proj_{nullptr}, up_proj_{nullptr}, down_proj_{nullptr};
};

template <typename C, typename Options>
ChannelEntry describe_channel(std::string about) {
  const auto fields = [] {
    static Options defaults;
    Fields all;
    defaults.describe(all);
    return all;
  };
  return {std::move(about), fields, [](int64_t width, const Config& table, const std::string& where) {
            return std::make_shared<C>(width, read_options<Options>(table, where, {"kind"}));
          }};
}

}  // namespace

Registry<ChannelEntry>& channel_mixers() {
  static Registry<ChannelEntry> registry = [] {
    Registry<ChannelEntry> all("channel mixer");
    all.add("mlp", describe_channel<Mlp, MlpOptions>("fc2(act(fc1 x))"));
    all.add("swiglu", describe_channel<Swiglu, SwigluOptions>("down(silu(gate x) * up x)"));
    return all;
  }();
  return registry;
}

std::shared_ptr<ChannelMixer> make_channel_mixer(int64_t width, const Config& table, const std::string& where) {
  if (!table.is_object() || !table.contains("kind") || !table["kind"].is_string()) {
    misuse("{}: expected a table with a kind, like {{ kind = \"swiglu\" }} or {{ kind = \"none\" }}", where);
  }
  const auto kind = table["kind"].get<std::string>();
  if (kind == "none") return nullptr;
  if (!channel_mixers().contains(kind)) {
    misuse("{}.kind = \"{}\": there is no such channel mixer; there are: none, {}", where, kind,
           fmt::join(channel_mixers().names(), ", "));
  }
  return channel_mixers().get(kind).make(width, table, where);
}

}  // namespace seqloom
